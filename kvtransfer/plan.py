"""Which bytes of a source's pool go where in a fetcher's pool, as byte ranges.

Pure arithmetic on two layouts, for source and sink alike: both compute the same ranges from the
same words, so none travel. Maps different tensor-parallel degrees (replicated heads included) and
block sizes of which one divides the other. Does not know which blocks may be read or written.
"""

# Shapes: P pieces, B source blocks of a slot, R ranges of all pieces, T ranges of a full piece,
# which are G groups of one from each of the B blocks.
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias, assert_never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocol.errors import LayoutMismatch, TransferError
from protocol.layout import DTYPE_BYTES, KvLayout, LatentLayout, Layout, StateLayout

NO_BLOCK = 0xFFFF_FFFF
"""In place of a source block that the lease's last slot lacks, or that a lease does not lend."""
MAX_PIECE_RANGES = 1 << 16
"""A peer chooses its block size, and so how finely a piece is cut. 80 layers of 8 heads in blocks
a quarter of the slot's make 5,120."""
MAX_KNOWN_PLANS = 32
"""A worker has few kinds of peers; with the bound above these take 50 MB at most."""
Integers: TypeAlias = NDArray[np.integer[Any]]
Int64s: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Byte ranges of one pool, piece after piece, each piece's in the order of its target."""

    offsets_R: Int64s
    sizes_R: Int64s
    starts_P: Int64s
    """[P+1]: the first range of each piece, then R."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """How one source provides `heads` of every slot: one piece a slot. Made by `plan`."""

    source_layout: Layout
    target_layout: Layout
    heads: range
    blocks_per_slot: int
    """Source blocks that one slot reads; 1 when they are as large as the slot or larger."""
    slots_per_block: int
    """Slots that read the same source block; 1 when it is as small as the slot or smaller."""
    slot_run_bytes: int
    """From one slot's tokens to the next one's, within a head of a source block."""
    source_offsets_T: Int64s
    target_offsets_T: Int64s
    sizes_T: Int64s
    """Range t reads block t % B of the slot's B."""

    is_whole: bool
    """A piece is one whole block on both sides: most transfers, and the cheapest."""

    @property
    def piece_bytes(self) -> int:
        """Bytes of a piece that lacks no source block."""
        return int(self.sizes_T.sum())

    def is_of_grains(self, grain_bytes: int) -> bool:
        """All ranges that it makes begin and end at multiples of so many bytes, in both pools."""
        strides = (
            self.source_layout.block_bytes, self.target_layout.block_bytes,
            self.slot_run_bytes if self.slots_per_block > 1 else 0,
        )  # fmt: skip
        each = np.concatenate(
            [self.source_offsets_T, self.target_offsets_T, self.sizes_T, np.array(strides)]
        )
        return not (each % grain_bytes).any()

    def num_bytes(self, blocks_PB: Integers) -> Int64s:
        """[P] bytes of each piece; less than `piece_bytes` where blocks are lacking."""
        counts_P: Int64s = np.count_nonzero(blocks_PB != NO_BLOCK, axis=1).astype(np.int64)
        return counts_P * (self.piece_bytes // self.blocks_per_slot)

    def source_blocks(self, index_P: Integers, lease_block_ids: Integers) -> NDArray[np.uint32]:
        """[P, B] ids of the blocks to read; NO_BLOCK beyond the lease's last one, or not lent.

        `index_P` counts slots from token 0 of the lease, those of all KV groups of a token block
        one after the other; `lease_block_ids` are its blocks in the same order.
        """
        ids = np.append(lease_block_ids.astype(np.uint32, copy=False), np.uint32(NO_BLOCK))
        return ids[np.minimum(self._numbers(index_P), len(lease_block_ids))]

    def not_lent(self, index_P: Integers, lease_block_ids: Integers) -> Integers:
        """Of these slots, those that read a block of the lease that a window has left behind."""
        due_PB = self._numbers(index_P) < len(lease_block_ids)
        absent_PB = self.source_blocks(index_P, lease_block_ids) == NO_BLOCK
        behind_X: Integers = index_P[(due_PB & absent_PB).any(axis=1)]
        return behind_X

    def check_pieces(self, index_P: Integers, blocks_PB: Integers, *, num_tokens: int) -> None:
        """Refuse slots beyond the lease's tokens, and source blocks missing or surplus.

        Without this a piece may leave bytes of its slot unwritten. Whoever reads the blocks
        checks that its pool has them. Raises TransferError.
        """
        if np.any(index_P >= self.target_layout.num_blocks(num_tokens)):
            raise TransferError(f"slot {index_P.max()} is beyond a lease of {num_tokens} tokens")
        lacking = self._numbers(index_P) >= self.source_layout.num_blocks(num_tokens)
        if np.any(lacking != (blocks_PB == NO_BLOCK)):
            raise TransferError(f"source blocks are not those of slots of {num_tokens} tokens")

    def source(self, index_P: Integers, blocks_PB: Integers) -> Ranges:
        """Where the pieces lie in the source's pool; `blocks_PB` as from `source_blocks`."""
        if self.is_whole:
            return whole_blocks(blocks_PB[:, 0], self.source_layout.block_bytes)
        offsets_PB = blocks_PB.astype(np.int64) * self.source_layout.block_bytes
        if self.slots_per_block > 1:
            places_P = index_P.astype(np.int64) // self._num_groups % self.slots_per_block
            offsets_PB += (places_P * self.slot_run_bytes)[:, None]
        offsets_GB = self.source_offsets_T.reshape(-1, self.blocks_per_slot)
        offsets_PGB = np.empty((len(blocks_PB), *offsets_GB.shape), np.int64)
        for block in range(self.blocks_per_slot):  # numpy is slow over so short an inner axis
            np.add(offsets_PB[:, block, None], offsets_GB[:, block], out=offsets_PGB[:, :, block])
        return self._ranges(offsets_PGB, blocks_PB)

    def target(self, index_P: Integers, slot_P: Integers, blocks_PB: Integers) -> Ranges:
        """Where they go in the fetcher's pool: `sizes_R` and `starts_P` as of `source`."""
        assert len(index_P) == len(slot_P) == len(blocks_PB)
        if self.is_whole:
            return whole_blocks(slot_P, self.target_layout.block_bytes)
        slots_P1 = slot_P.astype(np.int64)[:, None]
        offsets_PT = slots_P1 * self.target_layout.block_bytes + self.target_offsets_T
        return self._ranges(offsets_PT, blocks_PB)

    def _numbers(self, index_P: Integers) -> Int64s:
        """[P, B] numbers, within the lease, of the source blocks of each slot."""
        first_P, group_P = np.divmod(index_P.astype(np.int64), self._num_groups)
        if self.slots_per_block > 1:
            first_P //= self.slots_per_block
        numbers_PB = (first_P * self.blocks_per_slot)[:, None] + np.arange(self.blocks_per_slot)
        return numbers_PB * self._num_groups + group_P[:, None]

    @property
    def _num_groups(self) -> int:
        """KV groups, the same on both sides."""
        return self.target_layout.num_groups

    def _ranges(self, offsets_PT: Int64s, blocks_PB: Integers) -> Ranges:
        """Of all offsets, in any shape of P times T, those of blocks that are not lacking."""
        num_pieces, num_ranges = len(blocks_PB), len(self.sizes_T)
        offsets_R = offsets_PT.reshape(-1)
        sizes_PT = np.empty((num_pieces, num_ranges), np.int64)
        sizes_PT[:] = self.sizes_T
        starts_P = np.arange(num_pieces + 1, dtype=np.int64) * num_ranges
        there_PB = blocks_PB != NO_BLOCK
        if self.blocks_per_slot == 1 or there_PB.all():
            return Ranges(offsets_R, sizes_PT.reshape(-1), starts_P)
        num_groups = num_ranges // self.blocks_per_slot
        there_R = np.tile(there_PB, num_groups).reshape(-1)
        starts_P[1:] = np.cumsum(np.count_nonzero(there_PB, axis=1) * num_groups)
        return Ranges(offsets_R[there_R], sizes_PT.reshape(-1)[there_R], starts_P)


def whole_blocks(block_P: Integers, block_bytes: int) -> Ranges:
    """The ranges of whole blocks of one pool, one a piece."""
    num_pieces = len(block_P)
    sizes_R = np.full(num_pieces, block_bytes, np.int64)
    starts_P = np.arange(num_pieces + 1, dtype=np.int64)
    return Ranges(block_P.astype(np.int64) * block_bytes, sizes_R, starts_P)


@lru_cache(maxsize=MAX_KNOWN_PLANS)
def plan(source: Layout, target: Layout, *, heads: range | None = None) -> Plan:
    """How to fill `heads` of the target's blocks from the source's; all it holds by default.

    Raises LayoutMismatch naming the field, both values and the rule.
    """
    _must_share(source, target)
    heads = target.heads if heads is None else heads
    for end, layout in (("source", source), ("target", target)):
        if not (heads and heads.start in layout.heads and heads[-1] in layout.heads):
            raise _mismatch(
                "heads", source.heads, target.heads, f"the {end} must hold {heads}, which is asked"
            )
    big, small = sorted((source.block_tokens, target.block_tokens), reverse=True)
    if big % small:
        raise _mismatch("block_tokens", source.block_tokens, target.block_tokens,
                        "one must divide the other")  # fmt: skip
    return _plan(source, target, heads)


def cover(target: Layout, sources: Sequence[Layout], *, prefer: int = 0) -> list[tuple[int, Plan]]:
    """The fewest sources that hold all of a target's heads: (position in `sources`, its plan).

    Each head comes from exactly one, so the pieces of a slot never overlap. Of sources that
    reach equally far the first from `prefer` on is taken: ranks that prefer differently spread
    over replicas. Raises LayoutMismatch as `plan` does, and for a head that no source holds.
    """
    for source in sources:
        _must_share(source, target)
    chosen: list[tuple[int, Plan]] = []
    head = target.heads.start
    while head < target.heads.stop:
        holders = [place for place, source in enumerate(sources) if head in source.heads]
        if not holders:
            held = ", ".join(str(source.heads) for source in sources)
            raise _mismatch("heads", held, target.heads, f"some source must hold head {head}")
        reach = {place: min(sources[place].heads.stop, target.heads.stop) for place in holders}
        best = min(holders, key=lambda place: (-reach[place], (place - prefer) % len(sources)))
        end = reach[best]
        chosen.append((best, plan(sources[best], target, heads=range(head, end))))
        head = end
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """A block as [plane, head, token] rows of `row_bytes`."""

    num_planes: int
    heads: range
    num_tokens: int
    row_bytes: int


def _grid(layout: Layout) -> _Grid:
    match layout:
        case KvLayout():
            return _Grid(
                num_planes=2 * layout.num_layers, heads=layout.heads,
                num_tokens=layout.block_tokens,
                row_bytes=layout.head_dim * DTYPE_BYTES[layout.dtype],
            )  # fmt: skip
        case LatentLayout():
            return _Grid(
                num_planes=layout.num_layers, heads=layout.heads, num_tokens=layout.block_tokens,
                row_bytes=layout.latent_dim * DTYPE_BYTES[layout.dtype],
            )  # fmt: skip
        case StateLayout():
            return _Grid(num_planes=1, heads=layout.heads, num_tokens=1, row_bytes=layout.num_bytes)
        case _:
            assert_never(layout)


def _plan(source: Layout, target: Layout, heads: range) -> Plan:
    from_grid, to_grid = _grid(source), _grid(target)
    num_blocks = max(1, to_grid.num_tokens // from_grid.num_tokens)
    cut = (to_grid.num_planes, len(heads), num_blocks)
    if np.prod(cut, dtype=object) > MAX_PIECE_RANGES:
        raise _mismatch("block_tokens", source.block_tokens, target.block_tokens,
                        f"a slot may be cut into {MAX_PIECE_RANGES} ranges at most")  # fmt: skip
    plane_T, head_T, block_T = (axis.reshape(-1) for axis in np.indices(cut, dtype=np.int64))
    run_tokens = min(from_grid.num_tokens, to_grid.num_tokens)
    from_T = _rows(from_grid, plane_T, head_T + heads.start) * from_grid.row_bytes
    to_T = _rows(to_grid, plane_T, head_T + heads.start) + block_T * run_tokens
    to_T *= to_grid.row_bytes
    run_bytes = run_tokens * to_grid.row_bytes
    first_M = _unmerged(from_T, to_T, run_bytes if num_blocks == 1 else 0)
    sizes_T = np.diff(np.append(first_M, len(from_T))) * run_bytes
    return Plan(
        source_layout=source, target_layout=target, heads=heads, blocks_per_slot=num_blocks,
        slots_per_block=max(1, from_grid.num_tokens // to_grid.num_tokens),
        slot_run_bytes=run_bytes, source_offsets_T=from_T[first_M], target_offsets_T=to_T[first_M],
        sizes_T=sizes_T,
        is_whole=sizes_T.tolist() == [source.block_bytes] == [target.block_bytes],
    )  # fmt: skip


def _rows(grid: _Grid, plane_T: Int64s, head_T: Int64s) -> Int64s:
    """The row of token 0 of each (plane, head) in a block."""
    return (plane_T * len(grid.heads) + head_T - grid.heads.start) * grid.num_tokens


def _unmerged(from_T: Int64s, to_T: Int64s, run_bytes: int) -> Int64s:
    """The runs that do not continue the one before them in both pools."""
    joined_T = (np.diff(from_T) == run_bytes) & (np.diff(to_T) == run_bytes)
    return np.flatnonzero(np.append(True, ~joined_T))


def _must_share(source: Layout, target: Layout) -> None:
    for (name, theirs), (other, ours) in zip(source.invariants, target.invariants, strict=False):
        if (name, theirs) != (other, ours):
            raise _mismatch(name, theirs, ours, "they must be equal")


def _mismatch(field: str, source: object, target: object, rule: str) -> LayoutMismatch:
    return LayoutMismatch(f"{field}: source has {source}, target {target}; {rule}")


_MARKED: Final = 1 << 20
"""A megabyte of marks at most."""


def ascending(
    indices: ArrayLike, slots: ArrayLike
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Both by ascending index. Raises ValueError when their numbers differ or one comes twice."""
    indices_S, slots_S = np.asarray(indices, np.uint32), np.asarray(slots, np.uint32)
    if indices_S.shape != slots_S.shape or indices_S.ndim != 1:
        raise ValueError(f"indices: {indices_S.shape} for slots of {slots_S.shape}")
    steps = np.diff(indices_S.astype(np.int64))
    if (steps <= 0).any():
        order = np.argsort(indices_S, kind="stable")
        indices_S, slots_S = indices_S[order], slots_S[order]
        if (np.diff(indices_S.astype(np.int64)) == 0).any():
            raise ValueError("indices: one comes twice")
    if _has_twins(slots_S):
        raise ValueError("block_ids: one comes twice")
    return indices_S, slots_S


def _has_twins(slots_S: NDArray[np.uint32]) -> bool:
    """Whether a number comes twice. Marks cost a tenth of sorting, unless the numbers are wild."""
    if not len(slots_S) or (highest := int(slots_S.max())) > _MARKED:
        return len(np.unique(slots_S)) < len(slots_S)
    marks = np.zeros(highest + 1, np.bool_)
    marks[slots_S] = True
    return int(np.count_nonzero(marks)) < len(slots_S)
