"""What a source says of the pieces it sends: their blocks, generations, checksums, and ranges.

Sums blocks while nothing else is to be done, so that a fetch that comes after the prefill finds
the checksums ready. Sends nothing itself.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import MAX_CHUNK_PIECES, describe_pieces, num_in_next_chunk, pack_chunk
from kvtransfer.memory.pool import Pool, generation_sums
from kvtransfer.messages import Chunk
from kvtransfer.plan import Plan, Ranges, whole_blocks
from kvtransfer.source.lease import FetchRefused, Lease
from kvtransfer.sum_kinds import SumKind
from protocol.ids import LeaseId

_SUMMED_BYTES: Final = 8 << 20
"""In one turn: half a millisecond."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadyChunk:
    """A chunk, and where its bytes lie in our pool."""

    chunk: Chunk
    ranges: Ranges


@dataclass(slots=True, eq=False)
class _PlannedFetch:
    plan: Plan
    pieces_S: NDArray[Any]
    blocks_SB: NDArray[np.uint32]
    num_bytes: int
    """Of all its chunks so far."""


class BlockChecksums:
    """The checksums, of one kind, of whole blocks of one pool, each taken once, when it is written.

    Full blocks keep their bytes with their generation: a prefix that many share is summed once.
    """

    def __init__(self, memory: Pool, kind: SumKind) -> None:
        self._memory = memory
        self._kind = kind
        self._sums_N = np.zeros(memory.num_blocks, np.uint64)
        self._generations_N = np.full(memory.num_blocks, ~np.uint64(0))
        """The generation that each sum was taken of."""

    def take_sums(self, blocks_P: NDArray[np.uint32], generations_P: NDArray[np.uint64]) -> None:
        """Sum those of these full blocks that are not yet, but none that is being written again."""
        now_P = self._memory.generations_N[blocks_P]
        due_P = (now_P == generations_P) & (self._generations_N[blocks_P] != now_P)
        blocks = blocks_P[due_P]
        if len(blocks):
            self._sums_N[blocks] = self._sum(blocks)
            self._generations_N[blocks] = generations_P[due_P]

    def checksums(
        self, blocks_P: NDArray[np.uint32], *, generations_P: NDArray[np.uint64],
        full_P: NDArray[np.bool_],
    ) -> NDArray[np.uint64]:  # fmt: skip
        """The checksum of each; those not full may still grow, so theirs are taken afresh."""
        self.take_sums(blocks_P[full_P], generations_P[full_P])
        sums_P: NDArray[np.uint64] = self._sums_N[blocks_P]
        if not full_P.all():
            growing_P = blocks_P[~full_P]
            sums_P[~full_P] = self._sum(growing_P)
        return sums_P

    def _sum(self, blocks_P: NDArray[np.uint32]) -> NDArray[np.uint64]:
        ranges = whole_blocks(blocks_P, self._memory.block_bytes)
        return self._memory.checksums(ranges, self._kind)


class Chunks:
    """Those of all leases of one source."""

    def __init__(self, memory: Pool) -> None:
        self._memory = memory
        self._sums: dict[SumKind, BlockChecksums] = {}
        self._due_kind: SumKind = memory.sum_kinds[0]
        """What the last fetcher wanted, and the next probably will."""
        self._planned: dict[LeaseId, _PlannedFetch] = {}
        self._unsummed: deque[tuple[LeaseId, NDArray[np.uint32], NDArray[np.uint64]]] = deque()
        """Full blocks of a lease written a moment ago, and their generations."""
        self._num_noted: dict[LeaseId, int] = {}
        """Full blocks of a lease that were queued for summing."""

    @property
    def has_work(self) -> bool:
        """`sum_some` has something to do."""
        return bool(self._unsummed)

    def note_written(self, lease: Lease) -> None:
        """More of a lease is written: its full blocks will be summed when there is time."""
        first = self._num_noted.get(lease.id, 0)
        last = lease.num_written // lease.block_tokens * lease.num_groups
        if last > first:
            new = np.flatnonzero(lease.lent_B[first:last]) + first
            if len(new):
                self._unsummed.append((lease.id, lease.block_ids_B[new], lease.generations_B[new]))
            self._num_noted[lease.id] = last

    def sum_some(self) -> None:
        """Sum a turn's worth of what was written."""
        if not self._unsummed:
            return
        lease_id, blocks, generations = self._unsummed.popleft()
        if lease_id not in self._num_noted:
            return  # it has ended: whoever fetches these blocks under another sums them then
        most = max(1, _SUMMED_BYTES // self._memory.block_bytes)
        if len(blocks) > most:
            self._unsummed.appendleft((lease_id, blocks[most:], generations[most:]))
        self._sums_of(self._due_kind).take_sums(blocks[:most], generations[:most])

    def plan_fetch(self, lease: Lease, plan: Plan) -> None:
        """A fetcher with this plan asks for slots of the lease."""
        known = self._planned.get(lease.id)
        indices_S, slots_S = lease.wanted
        self._planned[lease.id] = _PlannedFetch(
            plan=plan,
            pieces_S=describe_pieces(
                plan, indices_S=indices_S, slots_S=slots_S, num_tokens=lease.num_tokens
            ),
            blocks_SB=plan.source_blocks(indices_S, lease.block_ids_B),
            num_bytes=0 if known is None else known.num_bytes,
        )

    def next_chunk(self, lease: Lease, *, most_bytes: int, sum_kind: SumKind) -> ReadyChunk | None:
        """The next pieces that are ready, with checksums of this kind; None when a block is no
        longer the lease's."""
        planned = self._planned[lease.id]
        if not self._is_held(lease):
            return None
        most_pieces = num_in_next_chunk(
            lease.num_ready, piece_bytes=planned.plan.piece_bytes, most_bytes=most_bytes,
            most_pieces=MAX_CHUNK_PIECES,
        )  # fmt: skip
        taken = lease.take_ready(most_pieces)
        pieces_P, blocks_PB = planned.pieces_S[taken], planned.blocks_SB[taken]
        ranges = planned.plan.source(pieces_P["index"], blocks_PB)
        pieces_P["generation"] = generation_sums(self._memory.generations_N, blocks_PB)
        self._due_kind = sum_kind
        pieces_P["checksum"] = self._checksums(lease, pieces_P, blocks_PB, ranges)
        planned.num_bytes += int(pieces_P["num_bytes"].sum())
        assert lease.fetch_id is not None
        chunk = pack_chunk(
            fetch=lease.fetch_id, attempt=lease.attempt, pieces_P=pieces_P, blocks_PB=blocks_PB
        )
        return ReadyChunk(chunk, ranges)

    def forget_lease(self, lease_id: LeaseId) -> int:
        """A lease has ended; bytes of its chunks."""
        self._num_noted.pop(lease_id, None)
        planned = self._planned.pop(lease_id, None)
        return 0 if planned is None else planned.num_bytes

    def _sums_of(self, kind: SumKind) -> BlockChecksums:
        if kind not in self._sums:
            self._sums[kind] = BlockChecksums(self._memory, kind)
        return self._sums[kind]

    def _is_held(self, lease: Lease) -> bool:
        """All blocks of the lease still have the generations it was opened with."""
        lent_B = lease.lent_B
        now = self._memory.generations_N[lease.block_ids_B[lent_B]]
        return bool((now == lease.generations_B[lent_B]).all())

    def _checksums(
        self, lease: Lease, pieces_P: NDArray[Any], blocks_PB: NDArray[np.uint32], ranges: Ranges
    ) -> NDArray[np.uint64]:
        """Of whole blocks from the store, of anything else afresh."""
        if not self._planned[lease.id].plan.is_whole:
            return self._memory.checksums(ranges, self._due_kind)
        full_P = pieces_P["token_count"] == lease.block_tokens
        return self._sums_of(self._due_kind).checksums(
            blocks_PB[:, 0], generations_P=pieces_P["generation"], full_P=full_P
        )


def unpack_u4(packed: bytes) -> NDArray[np.uint32]:
    """Unpack u4[]. Raises FetchRefused when bytes are left over."""
    if len(packed) % 4:
        raise FetchRefused(f"{len(packed)} bytes are no whole number of u4")
    return np.frombuffer(packed, "<u4")
