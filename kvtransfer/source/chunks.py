"""What a source says of the pieces it sends: their blocks, generations, checksums, and ranges.

Sums blocks while nothing else is to be done, so that a fetch that comes after the prefill finds
the checksums ready; those of a device are launched, all that is written in one, and never waited
for. Sends nothing itself.
"""

# Shapes: P pieces of a chunk, B source blocks of a piece, S slots of a fetch, N blocks of the pool.

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import MAX_CHUNK_PIECES, describe_pieces, num_in_next_chunk, pack_chunk
from kvtransfer.device.driver import Sums
from kvtransfer.memory.pool import Pool, generation_sums
from kvtransfer.messages import Chunk
from kvtransfer.plan import Plan, Ranges, whole_blocks
from kvtransfer.source.block_checksums import BlockChecksums
from kvtransfer.source.lease import FetchRefused, Lease
from kvtransfer.sum_kinds import SumKind
from protocol.ids import LeaseId


@dataclass(frozen=True, slots=True, eq=False)
class ReadyChunk:
    """A chunk, and where its bytes lie in our pool."""

    chunk: Chunk
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class NotSummed:
    """The pool's device has not taken the sums of the next chunk: look again."""

    since_s: float
    """When they were asked for."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _AskedChunk:
    """The next pieces of a lease, whose sums are being taken."""

    pieces_P: NDArray[Any]
    blocks_PB: NDArray[np.uint32]
    ranges: Ranges
    sum_kind: SumKind
    stored_P: NDArray[np.bool_]
    """Those whose sum is that of a full block, and kept."""
    stored: tuple[NDArray[np.uint32], NDArray[np.uint64]]
    """Their blocks and generations."""
    others: Sums | None
    """Of the other pieces, in their order."""
    since_s: float


@dataclass(slots=True, eq=False)
class _PlannedFetch:
    plan: Plan
    pieces_S: NDArray[Any]
    blocks_SB: NDArray[np.uint32]
    num_bytes: int
    """Of all its chunks so far."""
    asked: _AskedChunk | None = None


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

    @property
    def launches(self) -> bool:
        """Sums are launched: `sum_some` costs nobody a wait, and should come first."""
        return self._memory.turn_bytes is None

    def is_awaited(self, lease_id: LeaseId) -> bool:
        """The next chunk waits for its sums."""
        planned = self._planned.get(lease_id)
        return planned is not None and planned.asked is not None

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
        """Sum a turn's worth of what was written. Raises TransferError when the device is lost."""
        if not self._unsummed:
            return
        blocks, generations = zip(*self._turn(), strict=True)
        sums = self._sums_of(self._due_kind)
        sums.begin_sums(np.concatenate(blocks), np.concatenate(generations))

    def _turn(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint64]]]:
        """Blocks and generations; none of leases that have ended: whoever fetches their blocks
        under another lease sums them then."""
        yield np.empty(0, np.uint32), np.empty(0, np.uint64)
        turn_bytes = self._memory.turn_bytes
        most = None if turn_bytes is None else max(1, turn_bytes // self._memory.block_bytes)
        while self._unsummed and most != 0:
            lease_id, blocks, generations = self._unsummed.popleft()
            if lease_id not in self._num_noted:
                continue
            if most is not None and len(blocks) > most:
                self._unsummed.appendleft((lease_id, blocks[most:], generations[most:]))
            yield blocks[:most], generations[:most]
            most = None if most is None else max(0, most - len(blocks))

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

    def next_chunk(
        self, lease: Lease, *, most_bytes: int, sum_kind: SumKind, now_s: float
    ) -> ReadyChunk | NotSummed | None:
        """The next pieces that are ready, with checksums of this kind; None when a block is no
        longer the lease's. Raises TransferError when the device is lost."""
        planned = self._planned[lease.id]
        if not self._is_held(lease):
            return None
        self._due_kind = sum_kind
        asked = planned.asked
        if asked is not None and asked.sum_kind == sum_kind:
            sums_P = self._taken_sums(asked)
        else:
            asked = self._ask(planned, lease, most_bytes=most_bytes, now_s=now_s)
            sums_P = self._taken_sums(asked)
            if sums_P is None:  # a host's are there as soon as they are begun
                self._sums_of(sum_kind).begin_sums(*asked.stored)
                sums_P = self._taken_sums(asked)
        planned.asked = asked if sums_P is None else None
        if sums_P is None:
            return NotSummed(asked.since_s)
        pieces_P = asked.pieces_P
        pieces_P["checksum"] = sums_P
        lease.take_ready(len(pieces_P))
        planned.num_bytes += int(pieces_P["num_bytes"].sum())
        assert lease.fetch_id is not None
        chunk = pack_chunk(
            fetch=lease.fetch_id, attempt=lease.attempt, pieces_P=pieces_P,
            blocks_PB=asked.blocks_PB,
        )  # fmt: skip
        return ReadyChunk(chunk, asked.ranges)

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

    def _ask(
        self, planned: _PlannedFetch, lease: Lease, *, most_bytes: int, now_s: float
    ) -> _AskedChunk:
        """Describe the next pieces, and begin those sums that are never in the store: blocks that
        are not full may still grow, so theirs are taken afresh, as is anything else's."""
        most_pieces = num_in_next_chunk(
            lease.num_ready, piece_bytes=planned.plan.piece_bytes, most_bytes=most_bytes,
            most_pieces=MAX_CHUNK_PIECES,
        )  # fmt: skip
        ready = lease.next_ready(most_pieces)
        pieces_P, blocks_PB = planned.pieces_S[ready], planned.blocks_SB[ready]
        ranges = planned.plan.source(pieces_P["index"], blocks_PB)
        generations_P = generation_sums(self._memory.generations_N, blocks_PB)
        pieces_P["generation"] = generations_P
        stored_P = pieces_P["token_count"] == lease.block_tokens
        stored, others = (blocks_PB[:, 0], generations_P), None
        if not planned.plan.is_whole:
            stored_P = np.zeros(len(pieces_P), np.bool_)
            others = self._memory.begin_sums(ranges, self._due_kind)
        elif not stored_P.all():
            growing = whole_blocks(blocks_PB[~stored_P, 0], self._memory.block_bytes)
            others = self._memory.begin_sums(growing, self._due_kind)
        if others is not None:
            stored = (blocks_PB[stored_P, 0], generations_P[stored_P])
        return _AskedChunk(
            pieces_P=pieces_P, blocks_PB=blocks_PB, ranges=ranges, sum_kind=self._due_kind,
            stored_P=stored_P, stored=stored, others=others, since_s=now_s,
        )  # fmt: skip

    def _taken_sums(self, asked: _AskedChunk) -> NDArray[np.uint64] | None:
        """Of all pieces, once they are there."""
        stored_P = self._sums_of(asked.sum_kind).taken_sums(*asked.stored)
        if asked.others is None or stored_P is None:
            return stored_P
        if not asked.others.happened():
            return None
        sums_P = np.empty(len(asked.stored_P), np.uint64)
        sums_P[asked.stored_P] = stored_P
        sums_P[~asked.stored_P] = asked.others.take_sums()
        return sums_P


def unpack_u4(packed: bytes) -> NDArray[np.uint32]:
    """Unpack u4[]. Raises FetchRefused when bytes are left over."""
    if len(packed) % 4:
        raise FetchRefused(f"{len(packed)} bytes are no whole number of u4")
    return np.frombuffer(packed, "<u4")
