"""Counts a row's gaps, in one or two passes, and packs those between which the filters' edge lies.

A token's gap is (best - score) / temperature. A pass counts gaps in `BINS` equal bins, from which
`triton_plan` finds the bins in which the edge of top_k or top_p can lie: the bracket. Tokens below
it are kept for certain and those above it are not. What is in it, is packed for the exact search.
Where both edges lie far apart, that of top_k has a bracket of its own.

A gap of 32 has a mass of 1e-14 of the best token's and no noise makes up for it: such tokens count
as none. Masses are integers, so that no sum depends on tiles, parts or warps.
"""

# Shapes: R rows, P parts of a row, B bins, C places for packed tokens; 2 brackets, of which the
# second is top_k's where it has one.

import triton
import triton.language as tl

from engine.sampling.sampler import GREEDY_BELOW
from engine.sampling.triton_noise import gumbel, words_of

BINS = 64
CAPACITY = 8_192
"""Most tokens of a row that are packed."""
REACH = tl.constexpr(32.0)
SCALE = tl.constexpr(float(1 << 43))
"""Of a mass, the best token's being 1: a million of them fit int64."""
INFINITE = tl.constexpr(0x7F80_0000)
_GREEDY_BELOW = tl.constexpr(GREEDY_BELOW)
_NARROWEST = tl.constexpr(1e-30)
"""Of a reach: its bins are normal numbers."""
_LARGEST = tl.constexpr(3.4028234663852886e38)
TOP, MOST, LEAST = (tl.constexpr(field) for field in range(3))
FLOATS = tl.constexpr(3)
"""Fields [R, 3, P] float32: the part's best score; its largest noise - gap of certain tokens; its
least score that is finite."""
TOP_ID, MOST_ID, OFFSET, FIRST_KEY, LAST_KEY = (tl.constexpr(field) for field in (0, 1, 2, 4, 6))
INTS = tl.constexpr(8)
"""Fields [R, 8, P] int32: the holders of both; of each bracket, its first place among the packed
and the bits of the least and the widest gap in it."""
WHOLE, WITHIN, BELOW = (tl.constexpr(field) for field in range(3))
MASSES = tl.constexpr(4)
"""Fields [R, 4, P] int64: the mass of the part, of what is in the first bracket, of what is below
each."""
EDGES = tl.constexpr(4)
"""[R, 4] float32: from which gap to below which each bracket is."""
LIMITED, HELD, INSIDE, HELDS = (tl.constexpr(field) for field in (0, 1, 3, 5))
"""Fields [R, 5] int32: whether top_k takes any out; of each bracket, the tokens below it and in
it. A second one with none is not there."""
ALIGNED_BY_CHANCE = ["temperatures", "top_ks", "top_ps", "min_ps", "seeds", "positions", "tokens"]


@triton.jit  # type: ignore[untyped-decorator]
def scores_of(row, first, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of scores; NaN, and what lies beyond the row, counts as -inf."""
    ids = first + tl.arange(0, TILE)
    score = tl.load(row + ids, mask=ids < size, other=float("-inf")).to(tl.float32)
    score = tl.where(score == score, score, float("-inf"))
    return tl.where(score > _LARGEST, _LARGEST, score)


@triton.jit  # type: ignore[untyped-decorator]
def gaps_of(row, first, size, best, temperature, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Never negative, never -0.0: their bits order as they do."""
    return tl.abs(tl.div_rn(best - scores_of(row, first, size, TILE), temperature))


@triton.jit
def mass_of(gap):  # type: ignore[no-untyped-def]
    return (tl.exp(-gap) * SCALE).to(tl.int64)


@triton.jit
def mass_share(mass):  # type: ignore[no-untyped-def]
    """Of the best token's."""
    return mass.to(tl.float32) * (1 / SCALE)


@triton.jit
def place_of(r, field, num_fields, num_parts):  # type: ignore[no-untyped-def]
    return (r * num_fields + field) * num_parts


@triton.jit  # type: ignore[untyped-decorator]
def best_of(floats, r, num_parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    parts = tl.arange(0, PARTS)
    tops = tl.load(
        floats + place_of(r, TOP, FLOATS, num_parts) + parts,
        mask=parts < num_parts, other=float("-inf"),
    )  # fmt: skip
    return tl.max(tops, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def reach_of(floats, r, best, temperature, num_parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Beyond the widest gap that is finite: bins are as fine as a row is flat."""
    parts = tl.arange(0, PARTS)
    leasts = tl.load(
        floats + place_of(r, LEAST, FLOATS, num_parts) + parts,
        mask=parts < num_parts, other=float("inf"),
    )  # fmt: skip
    widest = tl.div_rn(best - tl.min(leasts, axis=0), temperature) * 1.001
    return tl.minimum(tl.maximum(widest, _NARROWEST), REACH)


@triton.jit
def is_filtered(top_k, top_p, size):  # type: ignore[no-untyped-def]
    return ((top_k > 0) & (top_k < size)) | (top_p < 1)


@triton.jit
def is_drawn(best, temperature):  # type: ignore[no-untyped-def]
    return (best > float("-inf")) & (temperature >= _GREEDY_BELOW)


@triton.jit
def widest_of(min_p):  # type: ignore[no-untyped-def]
    """The widest gap that min_p keeps; `abs`, for -0.0 has other bits."""
    return tl.where(min_p > 0, tl.abs(tl.log(tl.maximum(min_p, 1e-45))), float("inf"))


@triton.jit  # type: ignore[untyped-decorator]
def inverse_step(low, high, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / the width of a bin, a power of two: bins cut float32 exactly."""
    bits = ((high - low).to(tl.int32, bitcast=True) + 0x7F_FFFF) & INFINITE
    return (0x7F00_0000 - bits).to(tl.float32, bitcast=True) * BINS


@triton.jit  # type: ignore[untyped-decorator]
def put_loudest(  # type: ignore[no-untyped-def]
    floats, ints, r, part, num_parts, gap, kept, first, position, seed, size, TILE: tl.constexpr
):
    """Which of the kept tokens of the part has the largest noise - gap, if there are any."""
    most, holder = tl.full((), float("-inf"), tl.float32), size
    if tl.max(kept.to(tl.int32), axis=0) > 0:
        sums = tl.where(kept, gumbel(words_of(first, position, seed, TILE)) - gap, float("-inf"))
        most = tl.max(sums, axis=0)
        ids = first + tl.arange(0, TILE)
        holder = tl.min(tl.where(sums == most, ids, size), axis=0)
    tl.store(floats + place_of(r, MOST, FLOATS, num_parts) + part, most)
    tl.store(ints + place_of(r, MOST_ID, INTS, num_parts) + part, holder)


@triton.jit  # type: ignore[untyped-decorator]
def tops_kernel(  # type: ignore[no-untyped-def]
    logits, floats, ints, row_stride, size, num_parts, TILE: tl.constexpr
):
    """Program (r, part): the part's largest score, and the lowest id that has it; its least."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    score = scores_of(logits + r * row_stride, part * TILE, size, TILE)
    top = tl.max(score, axis=0)
    ids = part * TILE + tl.arange(0, TILE)
    least = tl.min(tl.where(score > float("-inf"), score, float("inf")), axis=0)
    tl.store(floats + place_of(r, LEAST, FLOATS, num_parts) + part, least)
    tl.store(floats + place_of(r, TOP, FLOATS, num_parts) + part, top)
    holder = tl.min(tl.where(score == top, ids, size), axis=0)
    tl.store(ints + place_of(r, TOP_ID, INTS, num_parts) + part, holder)


@triton.jit
def has_too_many(held, r, CAPACITY):  # type: ignore[no-untyped-def]
    first = tl.load(held + r * HELDS + INSIDE)
    return tl.maximum(first, tl.load(held + r * HELDS + INSIDE + 1)) > CAPACITY


@triton.jit  # type: ignore[untyped-decorator]
def put_counts(  # type: ignore[no-untyped-def]
    counts, r, which, part, num_parts, gap, inside, low, high, BINS: tl.constexpr
):
    nearest = tl.where(inside, gap - low, 0.0)
    bins = (nearest * inverse_step(low, high, BINS)).to(tl.int32)
    to = counts + ((r * 2 + which) * num_parts + part) * BINS + tl.arange(0, BINS)
    tl.store(to, tl.histogram(bins, BINS, mask=inside))


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def weigh_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    floats, ints, masses, counts, edges, held, row_stride, size, num_parts,
    AGAIN: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (r, part): counts of the part's gaps by bin, and its masses. Of a row without
    top_k and top_p: its choice. `AGAIN` in the brackets, of rows where one has too many."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    filtered = is_filtered(tl.load(top_ks + r), tl.load(top_ps + r), size)
    wanted = is_drawn(best, temperature)
    if AGAIN:
        wanted = wanted & filtered & has_too_many(held, r, CAPACITY)
    if wanted:
        first = part * TILE
        gap = gaps_of(logits + r * row_stride, first, size, best, temperature, TILE)
        kept = (gap < REACH) & (gap <= widest_of(tl.load(min_ps + r)))
        if filtered:
            mass = mass_of(gap)
            to = masses + r * MASSES * num_parts + part
            if AGAIN:
                for which in tl.static_range(2):
                    low = tl.load(edges + r * EDGES + 2 * which)
                    high = tl.load(edges + r * EDGES + 2 * which + 1)
                    inside = kept & (gap >= low) & (gap < high)
                    put_counts(counts, r, which, part, num_parts, gap, inside, low, high, BINS)
                    below = tl.sum(tl.where(kept & (gap < low), mass, 0), axis=0)
                    tl.store(to + (BELOW + which) * num_parts, below)
                    if which == 0:
                        within = tl.sum(tl.where(inside, mass, 0), axis=0)
                        tl.store(to + WITHIN * num_parts, within)
            else:
                reach = reach_of(floats, r, best, temperature, num_parts, PARTS)
                put_counts(counts, r, 0, part, num_parts, gap, kept, reach * 0, reach, BINS)
                whole = tl.sum(tl.where(kept, mass, 0), axis=0)
                tl.store(to + WHOLE * num_parts, whole)
        else:
            put_loudest(
                floats, ints, r, part, num_parts, gap, kept, first,
                tl.load(positions + r), tl.load(seeds + r), size, TILE,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def sum_of(masses, r, field, num_parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    parts = tl.arange(0, PARTS)
    start = masses + place_of(r, field, MASSES, num_parts)
    return tl.sum(tl.load(start + parts, mask=parts < num_parts, other=0), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def put_packed(  # type: ignore[no-untyped-def]
    ints, masses, edges, gaps, ids, r, which, part, num_parts, gap, kept, token,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """The part's share of a bracket, and the mass below it; ids of the first alone are needed."""
    low = tl.load(edges + r * EDGES + 2 * which)
    inside = kept & (gap >= low) & (gap < tl.load(edges + r * EDGES + 2 * which + 1))
    below = tl.sum(tl.where(kept & (gap < low), mass_of(gap), 0), axis=0)
    tl.store(masses + place_of(r, BELOW + which, MASSES, num_parts) + part, below)
    key = gap.to(tl.int32, bitcast=True)
    least = tl.min(tl.where(inside, key, INFINITE), axis=0)
    most = tl.max(tl.where(inside, key, -1), axis=0)
    tl.store(ints + place_of(r, FIRST_KEY + which, INTS, num_parts) + part, least)
    tl.store(ints + place_of(r, LAST_KEY + which, INTS, num_parts) + part, most)
    if most >= 0:
        place = tl.cumsum(inside.to(tl.int32), axis=0) - 1
        place += tl.load(ints + place_of(r, OFFSET + which, INTS, num_parts) + part)
        fits = inside & (place < CAPACITY)
        tl.store(gaps + (r * 2 + which) * CAPACITY + place, gap, mask=fits)
        tl.store(ids + r * CAPACITY + place, token, mask=fits & (which == 0))


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def pack_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    floats, ints, masses, edges, held, gaps, ids, row_stride, size, num_parts,
    PARTS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (r, part) of a filtered row: the choice among the part's certain tokens, and those
    of the brackets packed, ascending by id, as far as there is room. A part whose best token is
    beyond them is not read."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    filtered = is_filtered(tl.load(top_ks + r), tl.load(top_ps + r), size)
    if is_drawn(best, temperature) & filtered:
        low, end = tl.load(edges + r * EDGES), tl.load(edges + r * EDGES + 1)
        num_brackets = 1
        if tl.load(held + r * HELDS + INSIDE + 1) > 0:
            num_brackets = 2
            end = tl.maximum(end, tl.load(edges + r * EDGES + 3))
        top = tl.load(floats + place_of(r, TOP, FLOATS, num_parts) + part)
        end = tl.where(tl.abs(tl.div_rn(best - top, temperature)) < end, size, 0)
        first = part * TILE
        gap = gaps_of(logits + r * row_stride, first, end, best, temperature, TILE)
        kept = (gap < REACH) & (gap <= widest_of(tl.load(min_ps + r)))
        token = first + tl.arange(0, TILE)
        for which in range(num_brackets):
            put_packed(
                ints, masses, edges, gaps, ids, r, which, part, num_parts, gap, kept, token,
                CAPACITY,
            )  # fmt: skip
        put_loudest(
            floats, ints, r, part, num_parts, gap, kept & (gap < low), first,
            tl.load(positions + r), tl.load(seeds + r), size, TILE,
        )  # fmt: skip
