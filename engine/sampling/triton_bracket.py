"""Finds, in one or two passes over each row, between which gaps the filters' edge lies.

A token's gap is (best - score) / temperature. A pass counts gaps in `BINS` equal bins; as a bin
says each of its masses to a factor of exp(width), the counts bound the mass up to every bin, and
so the bins in which the edge of top_k or top_p can lie: the bracket. Tokens below it are kept for
certain and those above it are not. What is in it, is packed for the exact search.

A gap of 32 has a mass of 1e-14 of the best token's and no noise makes up for it: such tokens count
as none. Masses are integers, so that no sum depends on tiles, parts or warps.
"""

# Shapes: R rows, P parts of a row, B bins, C places for packed tokens.

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
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SLACK = tl.constexpr(1e-4)
"""Of the bounds, for what float32 loses in them."""
TOP, MOST = tl.constexpr(0), tl.constexpr(1)
"""Fields [R, 2, P] float32: the part's best score; its largest noise - gap of certain tokens."""
TOP_ID, MOST_ID, OFFSET, FIRST_KEY, LAST_KEY = (tl.constexpr(field) for field in range(5))
"""Fields [R, 5, P] int32: the holders of both; its first place among the packed; the bits of the
least and the widest gap in its bracket."""
WHOLE, BELOW, WITHIN = (tl.constexpr(field) for field in range(3))
"""Fields [R, 3, P] int64: the mass of the part, of what is below the bracket, of what is in it."""
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
        floats + place_of(r, TOP, 2, num_parts) + parts,
        mask=parts < num_parts, other=float("-inf"),
    )  # fmt: skip
    return tl.max(tops, axis=0)


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
    tl.store(floats + place_of(r, MOST, 2, num_parts) + part, most)
    tl.store(ints + place_of(r, MOST_ID, 5, num_parts) + part, holder)


@triton.jit  # type: ignore[untyped-decorator]
def tops_kernel(  # type: ignore[no-untyped-def]
    logits, floats, ints, row_stride, size, num_parts, TILE: tl.constexpr
):
    """Program (r, part): the part's largest score, and the lowest id that has it."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    score = scores_of(logits + r * row_stride, part * TILE, size, TILE)
    top = tl.max(score, axis=0)
    ids = part * TILE + tl.arange(0, TILE)
    tl.store(floats + place_of(r, TOP, 2, num_parts) + part, top)
    holder = tl.min(tl.where(score == top, ids, size), axis=0)
    tl.store(ints + place_of(r, TOP_ID, 5, num_parts) + part, holder)


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def weigh_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    floats, ints, masses, counts, edges, held, row_stride, size, num_parts,
    AGAIN: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (r, part): counts of the part's gaps by bin, and its masses. Of a row without
    top_k and top_p: its choice. `AGAIN` in the bracket, of rows where that has too many."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    filtered = is_filtered(tl.load(top_ks + r), tl.load(top_ps + r), size)
    low, high = tl.full((), 0.0, tl.float32), tl.full((), REACH, tl.float32)
    wanted = is_drawn(best, temperature)
    if AGAIN:
        low, high = tl.load(edges + r * 2), tl.load(edges + r * 2 + 1)
        wanted = wanted & filtered & (tl.load(held + r * 3 + 1) > CAPACITY)
    if wanted:
        first = part * TILE
        gap = gaps_of(logits + r * row_stride, first, size, best, temperature, TILE)
        kept = (gap < REACH) & (gap <= widest_of(tl.load(min_ps + r)))
        if filtered:
            inside = kept & (gap >= low) & (gap < high)
            nearest = tl.where(inside, gap - low, 0.0)
            bins = (nearest * inverse_step(low, high, BINS)).to(tl.int32)
            bin_ids = tl.arange(0, BINS)
            tl.store(
                counts + (r * num_parts + part) * BINS + bin_ids,
                tl.histogram(bins, BINS, mask=inside),
            )
            mass = mass_of(gap)
            if AGAIN:
                below = tl.sum(tl.where(kept & (gap < low), mass, 0), axis=0)
                tl.store(masses + place_of(r, BELOW, 3, num_parts) + part, below)
                within = tl.sum(tl.where(inside, mass, 0), axis=0)
                tl.store(masses + place_of(r, WITHIN, 3, num_parts) + part, within)
            else:
                whole = tl.sum(tl.where(kept, mass, 0), axis=0)
                tl.store(masses + place_of(r, WHOLE, 3, num_parts) + part, whole)
        else:
            put_loudest(
                floats, ints, r, part, num_parts, gap, kept, first,
                tl.load(positions + r), tl.load(seeds + r), size, TILE,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def sum_of(masses, r, field, num_parts, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    parts = tl.arange(0, PARTS)
    start = masses + place_of(r, field, 3, num_parts)
    return tl.sum(tl.load(start + parts, mask=parts < num_parts, other=0), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def reached_by(  # type: ignore[no-untyped-def]
    near, far, base, beyond, least, most, top_p, unsure, SURELY: tl.constexpr
):
    """How many bins do not hold top_p of the mass with those before: for certain, or perhaps
    (`SURELY` False and True). A bin's mass is between `far` and `near`, all of it between `least`
    and `most`; once by what is held, once by what is left."""
    if SURELY:
        held, left = tl.cumsum(far, axis=0), tl.cumsum(near, axis=0, reverse=True)
        by_held = base + held * (1 - _SLACK) >= top_p * most * (1 + _SLACK) + unsure
        left = beyond + left * (1 + _SLACK) - near + unsure
        short = (left > (1 - top_p) * least * (1 - _SLACK)) & (by_held == 0)
    else:
        held, left = tl.cumsum(near, axis=0), tl.cumsum(far, axis=0, reverse=True)
        by_held = base + held * (1 + _SLACK) + unsure < top_p * least * (1 - _SLACK)
        left = beyond + left * (1 - _SLACK) - far - unsure
        short = (left > (1 - top_p) * most * (1 + _SLACK)) | by_held
    return tl.sum(short.to(tl.int32), axis=0)


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def plan_kernel(  # type: ignore[no-untyped-def]
    temperatures, top_ks, top_ps, ints, masses, counts, edges, held, size, num_parts,
    AGAIN: tl.constexpr, PARTS: tl.constexpr, BINS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program r: the row's bracket and where each part's share of it is packed.

    edges [R, 2]: from which gap to below which. held [R, 3]: tokens below it, in it, and whether
    top_k takes any out."""
    r = tl.program_id(0).to(tl.int64)
    top_k, top_p = tl.load(top_ks + r), tl.load(top_ps + r)
    wanted = is_filtered(top_k, top_p, size) & (tl.load(temperatures + r) >= _GREEDY_BELOW)
    low, high = tl.full((), 0.0, tl.float32), tl.full((), REACH, tl.float32)
    base_count, base, beyond = 0, low, low
    whole = sum_of(masses, r, WHOLE, num_parts, PARTS)
    if AGAIN:
        wanted = wanted & (tl.load(held + r * 3 + 1) > CAPACITY)
        low, high = tl.load(edges + r * 2), tl.load(edges + r * 2 + 1)
        base_count = tl.load(held + r * 3)
        below = sum_of(masses, r, BELOW, num_parts, PARTS)
        beyond = mass_share(whole - below - sum_of(masses, r, WITHIN, num_parts, PARTS))
        base = mass_share(below)
    if wanted:
        parts, bins = tl.arange(0, PARTS), tl.arange(0, BINS)
        places = (r * num_parts + parts[:, None]) * BINS + bins[None, :]
        counts_PB = tl.load(counts + places, mask=parts[:, None] < num_parts, other=0)
        count = tl.sum(counts_PB, axis=0)
        after = base_count + tl.cumsum(count, axis=0)
        if AGAIN:
            limited = tl.load(held + r * 3 + 2) > 0
        else:
            limited = (top_k > 0) & (top_k < tl.max(after, axis=0))
        edge = tl.where(limited, tl.sum((after < top_k).to(tl.int32), axis=0), BINS)
        taken = tl.where(bins == edge, top_k - (after - count), tl.where(bins < edge, count, 0))
        step = tl.div_rn(low * 0 + 1, inverse_step(low, high, BINS))
        near, far = taken * tl.exp(-low - bins * step), taken * tl.exp(-low - (bins + 1) * step)
        total = mass_share(whole)
        least = tl.where(limited, base + tl.sum(far, axis=0), total)
        most = tl.where(limited, base + tl.sum(near, axis=0), total)
        beyond = tl.where(limited, 0.0, beyond)
        unsure = size * (1 / SCALE)
        first = reached_by(near, far, base, beyond, least, most, top_p, unsure, False)
        last = reached_by(near, far, base, beyond, least, most, top_p, unsure, True)
        by_mass = top_p < 1
        last = tl.where(limited, edge, tl.where(by_mass, tl.minimum(last, BINS - 1), BINS))
        first = tl.where(by_mass, tl.minimum(first, last), last)
        tl.store(edges + r * 2, tl.where(first < BINS, low + first * step, REACH))
        tl.store(edges + r * 2 + 1, tl.where(first < BINS, low + (last + 1) * step, REACH))
        inside = (bins >= first) & (bins <= last)
        tl.store(held + r * 3, base_count + tl.sum(tl.where(bins < first, count, 0), axis=0))
        tl.store(held + r * 3 + 1, tl.sum(tl.where(inside, count, 0), axis=0))
        tl.store(held + r * 3 + 2, limited.to(tl.int32))
        packed = tl.sum(tl.where(inside[None, :], counts_PB, 0), axis=1)
        offset = tl.cumsum(packed, axis=0) - packed
        to = ints + place_of(r, OFFSET, 5, num_parts) + parts
        tl.store(to, offset, mask=parts < num_parts)


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def pack_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    floats, ints, masses, edges, gaps, ids, row_stride, size, num_parts,
    PARTS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (r, part) of a filtered row: the choice among the part's certain tokens, and those
    of the bracket packed, ascending by id, as far as there is room. A part whose best token is
    beyond the bracket is not read."""
    r, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    filtered = is_filtered(tl.load(top_ks + r), tl.load(top_ps + r), size)
    if is_drawn(best, temperature) & filtered:
        low, high = tl.load(edges + r * 2), tl.load(edges + r * 2 + 1)
        top = tl.load(floats + place_of(r, TOP, 2, num_parts) + part)
        end = tl.where(tl.abs(tl.div_rn(best - top, temperature)) < high, size, 0)
        first = part * TILE
        gap = gaps_of(logits + r * row_stride, first, end, best, temperature, TILE)
        kept = (gap < high) & (gap <= widest_of(tl.load(min_ps + r)))
        certain, inside = kept & (gap < low), kept & (gap >= low)
        below = tl.sum(tl.where(certain, mass_of(gap), 0), axis=0)
        tl.store(masses + place_of(r, BELOW, 3, num_parts) + part, below)
        key = gap.to(tl.int32, bitcast=True)
        least = tl.min(tl.where(inside, key, INFINITE), axis=0)
        most = tl.max(tl.where(inside, key, -1), axis=0)
        tl.store(ints + place_of(r, FIRST_KEY, 5, num_parts) + part, least)
        tl.store(ints + place_of(r, LAST_KEY, 5, num_parts) + part, most)
        if most >= 0:
            place = tl.cumsum(inside.to(tl.int32), axis=0) - 1
            place += tl.load(ints + place_of(r, OFFSET, 5, num_parts) + part)
            fits = inside & (place < CAPACITY)
            tl.store(gaps + r * CAPACITY + place, gap, mask=fits)
            tl.store(ids + r * CAPACITY + place, first + tl.arange(0, TILE), mask=fits)
        put_loudest(
            floats, ints, r, part, num_parts, gap, certain, first,
            tl.load(positions + r), tl.load(seeds + r), size, TILE,
        )  # fmt: skip
