"""What a source says of the pieces it sends: their blocks, generations, checksums, and ranges.

Sums blocks while nothing else is to be done, so that a fetch that comes after the prefill finds
the checksums ready. Sends nothing itself.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import MAX_CHUNK_PIECES, describe, pack
from kvtransfer.memory.host_pool import Pool
from kvtransfer.messages import Chunk
from kvtransfer.plan import Plan, Ranges
from kvtransfer.source.checksums import BlockSums
from kvtransfer.source.chunking import next_chunk
from kvtransfer.source.lease import Lending
from protocol.errors import WireError
from protocol.ids import LeaseId
from protocol.layout import Layout

_SUMMED_BYTES: Final = 8 << 20
"""In one turn: half a millisecond."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """A chunk, and where its bytes lie in our pool."""

    chunk: Chunk
    ranges: Ranges


@dataclass(slots=True, eq=False)
class _Way:
    plan: Plan
    pieces_S: NDArray[Any]
    blocks_SB: NDArray[np.uint32]
    num_bytes: int
    """Offered so far."""


class Offers:
    def __init__(self, memory: Pool, layout: Layout) -> None:
        self._memory = memory
        self._layout = layout
        self._sums = BlockSums(memory)
        self._ways: dict[LeaseId, _Way] = {}
        self._unsummed: deque[tuple[LeaseId, NDArray[np.uint32], NDArray[np.uint64]]] = deque()
        """Full blocks of a lease written a moment ago, and their generations."""
        self._num_noted: dict[LeaseId, int] = {}
        """Full blocks of a lease that were queued for summing."""

    @property
    def has_work(self) -> bool:
        """`sum_some` has something to do."""
        return bool(self._unsummed)

    def written(self, lending: Lending) -> None:
        """More of a lease is written: its full blocks will be summed when there is time."""
        first = self._num_noted.get(lending.lease, 0)
        last = lending.num_written // lending.block_tokens * lending.num_groups
        if last > first:
            new = np.flatnonzero(lending.lent_B[first:last]) + first
            if len(new):
                self._unsummed.append(
                    (lending.lease, lending.block_ids_B[new], lending.generations_B[new])
                )
            self._num_noted[lending.lease] = last

    def sum_some(self) -> None:
        """Sum a turn's worth of what was written."""
        if not self._unsummed:
            return
        lease, blocks, generations = self._unsummed.popleft()
        if lease not in self._num_noted:
            return  # it has ended: whoever fetches these blocks under another sums them then
        most = max(1, _SUMMED_BYTES // self._memory.block_bytes)
        if len(blocks) > most:
            self._unsummed.appendleft((lease, blocks[most:], generations[most:]))
        self._sums.take(blocks[:most], generations[:most])

    def planned(self, lending: Lending, plan: Plan) -> None:
        """A fetcher with this plan asks for slots of the lease."""
        known = self._ways.get(lending.lease)
        indices_S, slots_S = lending.wanted
        self._ways[lending.lease] = _Way(
            plan=plan,
            pieces_S=describe(
                plan, indices_S=indices_S, slots_S=slots_S, num_tokens=lending.num_tokens
            ),
            blocks_SB=plan.source_blocks(indices_S, lending.block_ids_B),
            num_bytes=0 if known is None else known.num_bytes,
        )

    def next(self, lending: Lending, *, most_bytes: int) -> Offer | None:
        """The next pieces that are ready; None when a block is no longer the lease's."""
        way = self._ways[lending.lease]
        if not self._held(lending):
            return None
        taken = lending.take_ready(_how_many(lending, way.plan, most_bytes))
        pieces_P, blocks_PB = way.pieces_S[taken], way.blocks_SB[taken]
        ranges = way.plan.source(pieces_P["index"], blocks_PB)
        pieces_P["generation"] = self._memory.generation_sums(blocks_PB)
        pieces_P["checksum"] = self._checksums(lending, pieces_P, blocks_PB, ranges)
        way.num_bytes += int(pieces_P["num_bytes"].sum())
        assert lending.fetch is not None
        chunk = pack(
            fetch=lending.fetch, attempt=lending.attempt, pieces_P=pieces_P, blocks_PB=blocks_PB
        )
        return Offer(chunk, ranges)

    def forget(self, lease: LeaseId) -> int:
        """A lease has ended; bytes offered under it."""
        self._num_noted.pop(lease, None)
        way = self._ways.pop(lease, None)
        return 0 if way is None else way.num_bytes

    def _held(self, lending: Lending) -> bool:
        """All blocks of the lease still have the generations it was opened with."""
        lent_B = lending.lent_B
        now = self._memory.generations_N[lending.block_ids_B[lent_B]]
        return bool((now == lending.generations_B[lent_B]).all())

    def _checksums(
        self, lending: Lending, pieces_P: NDArray[Any], blocks_PB: NDArray[np.uint32],
        ranges: Ranges,
    ) -> NDArray[np.uint64]:  # fmt: skip
        """Of whole blocks from the store, of anything else afresh."""
        if not self._ways[lending.lease].plan.is_whole:
            return self._memory.checksums(ranges)
        full_P = pieces_P["token_count"] == lending.block_tokens
        return self._sums.of(blocks_PB[:, 0], generations_P=pieces_P["generation"], full_P=full_P)


def _how_many(lending: Lending, way: Plan, most_bytes: int) -> int:
    """Of the pieces that are ready, those of the next chunk."""
    return next_chunk(
        lending.num_ready, piece_bytes=way.piece_bytes, most_bytes=most_bytes,
        most_pieces=MAX_CHUNK_PIECES,
    )  # fmt: skip


def u4(packed: bytes) -> NDArray[np.uint32]:
    """Unpack u4[]. Raises WireError when bytes are left over."""
    if len(packed) % 4:
        raise WireError(f"{len(packed)} bytes are no whole number of u4")
    return np.frombuffer(packed, "<u4")
