"""Bounds, from the counts of `triton_bracket`, where in a row the edges of top_k and top_p lie.

A bin says each of its masses to a factor of exp(width): so the counts bound the mass up to every
bin, and the bins in which an edge can lie. Counts say exactly in which bin top_k's is. Where the
bins between both edges hold more tokens than there is room for, each edge gets a bracket.
"""

# Shapes: R rows, P parts of a row, B bins.

import triton
import triton.language as tl

from engine.sampling.triton_bracket import (
    ALIGNED_BY_CHANCE,
    BELOW,
    EDGES,
    HELD,
    HELDS,
    INSIDE,
    INTS,
    LIMITED,
    OFFSET,
    REACH,
    SCALE,
    WHOLE,
    WITHIN,
    best_of,
    has_too_many,
    inverse_step,
    is_drawn,
    is_filtered,
    mass_share,
    place_of,
    reach_of,
    sum_of,
)  # fmt: skip

_SLACK = tl.constexpr(1e-4)
"""Of the bounds, for what float32 loses in them."""


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


@triton.jit  # type: ignore[untyped-decorator]
def counts_of(  # type: ignore[no-untyped-def]
    counts, r, which, num_parts, PARTS: tl.constexpr, BINS: tl.constexpr
):
    parts, bins = tl.arange(0, PARTS), tl.arange(0, BINS)
    places = ((r * 2 + which) * num_parts + parts[:, None]) * BINS + bins[None, :]
    return tl.load(counts + places, mask=parts[:, None] < num_parts, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def masses_of(taken, low, high, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """What so many tokens of each bin weigh at most and at least."""
    bins = tl.arange(0, BINS)
    step = tl.div_rn(low * 0 + 1, inverse_step(low, high, BINS))
    return taken * tl.exp(-low - bins * step), taken * tl.exp(-low - (bins + 1) * step)


@triton.jit  # type: ignore[untyped-decorator]
def put_bracket(  # type: ignore[no-untyped-def]
    ints, edges, held, r, which, num_parts, counts_PB, first, last, low, high, base_count,
    PARTS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Bins first .. last, and where each part's share of them is packed. None: beyond all."""
    parts, bins = tl.arange(0, PARTS), tl.arange(0, BINS)
    step = tl.div_rn(low * 0 + 1, inverse_step(low, high, BINS))
    to = edges + r * EDGES + 2 * which
    tl.store(to, tl.where(first < BINS, low + first * step, REACH))
    tl.store(to + 1, tl.where(first < BINS, low + (last + 1) * step, REACH))
    before = tl.sum(tl.where((bins < first)[None, :], counts_PB, 0), axis=1)
    inside = (bins >= first) & (bins <= last)
    packed = tl.sum(tl.where(inside[None, :], counts_PB, 0), axis=1)
    tl.store(held + r * HELDS + HELD + which, base_count + tl.sum(before, axis=0))
    tl.store(held + r * HELDS + INSIDE + which, tl.sum(packed, axis=0))
    to = ints + place_of(r, OFFSET + which, INTS, num_parts) + parts
    tl.store(to, tl.cumsum(packed, axis=0) - packed, mask=parts < num_parts)


@triton.jit  # type: ignore[untyped-decorator]
def taken_by(count, base_count, top_k, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bin in which top_k's edge is, and how many tokens of each bin it keeps."""
    bins, after = tl.arange(0, BINS), base_count + tl.cumsum(count, axis=0)
    edge = tl.sum((after < top_k).to(tl.int32), axis=0)
    rest = top_k - (after - count)
    return edge, tl.where(bins == edge, rest, tl.where(bins < edge, count, 0))


@triton.jit  # type: ignore[untyped-decorator]
def narrowed_limit(  # type: ignore[no-untyped-def]
    ints, masses, counts, edges, held, r, num_parts, top_k, PARTS: tl.constexpr, BINS: tl.constexpr
):
    """Of the second bracket, that of top_k; what all that it keeps weighs, at least and at most."""
    counts_PB = counts_of(counts, r, 1, num_parts, PARTS, BINS)
    low, high = tl.load(edges + r * EDGES + 2), tl.load(edges + r * EDGES + 3)
    base_count = tl.load(held + r * HELDS + HELD + 1)
    edge, taken = taken_by(tl.sum(counts_PB, axis=0), base_count, top_k, BINS)
    near, far = masses_of(taken, low, high, BINS)
    base = mass_share(sum_of(masses, r, BELOW + 1, num_parts, PARTS))
    put_bracket(
        ints, edges, held, r, 1, num_parts, counts_PB, edge, edge, low, high, base_count,
        PARTS, BINS,
    )  # fmt: skip
    return base + tl.sum(far, axis=0), base + tl.sum(near, axis=0)


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def plan_kernel(  # type: ignore[no-untyped-def]
    temperatures, top_ks, top_ps, floats, ints, masses, counts, edges, held, size, num_parts,
    PARTS: tl.constexpr, BINS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program r: the row's bracket, or both."""
    r = tl.program_id(0).to(tl.int64)
    top_k, top_p = tl.load(top_ks + r), tl.load(top_ps + r)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    if is_drawn(best, temperature) & is_filtered(top_k, top_p, size):
        high = reach_of(floats, r, best, temperature, num_parts, PARTS)
        low, bins = high * 0, tl.arange(0, BINS)
        counts_PB = counts_of(counts, r, 0, num_parts, PARTS, BINS)
        count = tl.sum(counts_PB, axis=0)
        limited = (top_k > 0) & (top_k < tl.sum(count, axis=0))
        edge, taken = taken_by(count, 0, tl.where(limited, top_k, size + 1), BINS)
        near, far = masses_of(taken, low, high, BINS)
        total = mass_share(sum_of(masses, r, WHOLE, num_parts, PARTS))
        least = tl.where(limited, tl.sum(far, axis=0), total)
        most = tl.where(limited, tl.sum(near, axis=0), total)
        unsure, by_mass = size * (1 / SCALE), top_p < 1
        first = reached_by(near, far, 0.0, 0.0, least, most, top_p, unsure, False)
        last = reached_by(near, far, 0.0, 0.0, least, most, top_p, unsure, True)
        last = tl.where(by_mass, tl.minimum(last, tl.minimum(edge, BINS - 1)), edge)
        first = tl.where(by_mass, tl.minimum(first, last), last)
        between = tl.sum(tl.where((bins >= first) & (bins <= edge), count, 0), axis=0)
        split = limited & by_mass & (between > CAPACITY)
        tl.store(edges + r * EDGES + 2, low)
        tl.store(edges + r * EDGES + 3, high)
        tl.store(held + r * HELDS + INSIDE + 1, 0)
        if split:
            put_bracket(
                ints, edges, held, r, 1, num_parts, counts_PB, edge, edge, low, high, 0, PARTS, BINS
            )
        last = tl.where(limited & (split == 0), edge, last)
        put_bracket(
            ints, edges, held, r, 0, num_parts, counts_PB, first, last, low, high, 0, PARTS, BINS
        )
        tl.store(held + r * HELDS + LIMITED, limited.to(tl.int32))


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def narrow_kernel(  # type: ignore[no-untyped-def]
    temperatures, top_ks, top_ps, floats, ints, masses, counts, edges, held, size, num_parts,
    PARTS: tl.constexpr, BINS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program r, of a row with too many in a bracket: the same within it."""
    r = tl.program_id(0).to(tl.int64)
    top_k, top_p = tl.load(top_ks + r), tl.load(top_ps + r)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    wanted = is_drawn(best, temperature) & is_filtered(top_k, top_p, size)
    if wanted & has_too_many(held, r, CAPACITY):
        low, high = tl.load(edges + r * EDGES), tl.load(edges + r * EDGES + 1)
        base_count = tl.load(held + r * HELDS + HELD)
        limited = tl.load(held + r * HELDS + LIMITED) > 0
        split = tl.load(held + r * HELDS + INSIDE + 1) > 0
        whole = sum_of(masses, r, WHOLE, num_parts, PARTS)
        below = sum_of(masses, r, BELOW, num_parts, PARTS)
        beyond = mass_share(whole - below - sum_of(masses, r, WITHIN, num_parts, PARTS))
        counts_PB = counts_of(counts, r, 0, num_parts, PARTS, BINS)
        edge, _ = taken_by(tl.sum(counts_PB, axis=0), base_count, top_k, BINS)
        near, far = masses_of(tl.sum(counts_PB, axis=0), low, high, BINS)
        least, most, fewest = mass_share(whole), mass_share(whole), beyond
        if split:  # what is left is told by what is held alone
            least, most = narrowed_limit(
                ints, masses, counts, edges, held, r, num_parts, top_k, PARTS, BINS
            )
            beyond, fewest = beyond * 0 + float("inf"), beyond * 0 - float("inf")
        base, unsure = mass_share(below), size * (1 / SCALE)
        first = reached_by(near, far, base, fewest, least, most, top_p, unsure, False)
        last = reached_by(near, far, base, beyond, least, most, top_p, unsure, True)
        by_mass = (top_p < 1) & (split | (limited == 0))
        last = tl.where(by_mass, tl.minimum(last, BINS - 1), edge)
        first = tl.where(by_mass, tl.minimum(first, last), last)
        put_bracket(
            ints, edges, held, r, 0, num_parts, counts_PB, first, last, low, high, base_count,
            PARTS, BINS,
        )  # fmt: skip
