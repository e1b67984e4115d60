"""Chooses a token of each row without sorting it. Twin: `engine.sampling.sampler`.

With gap = (best - score) / temperature, a float32 that is never negative, a filter keeps the
tokens of the smallest gaps, equal ones by id: so min_p, top_k and top_p are each a largest gap
and how many tokens may have exactly that. Among what is kept the Gumbel noise of
`engine.ops.philox` decides, in float32 here.

Passes over a row: one for the largest score, which is all that a greedy row needs; one that draws,
of a row without top_k and top_p; else one that counts gaps by bins (`triton_bracket`; one more
where more than `CAPACITY` tokens are left in doubt), and one that draws from the tokens that are
certain and packs those in doubt, among which the edge is searched (radix selection with early
packing, as AIR Top-K, Zhang et al., 2023, but of masses as well as of ranks; the search with
several pivots is FlashInfer's, Ye et al., 2025). So two to four, whatever the rules. Where more
than `CAPACITY` tokens lie in a few 4,096ths of the row's reach, it is read once more if they all
have the same gap; else the row itself is searched, in up to 35 passes more.

Each part of a row has a program of its own in all of these passes; parts, tiles and warps decide
no token, for masses are summed as integers and the rest are maxima.
"""

# Shapes: R rows, V vocabulary, P parts of a row, B bins, C places for packed tokens.

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.triton.launch import Launch, as_stride, chosen, power_of_two
from engine.sampling import triton_bracket, triton_plan
from engine.sampling.rows import RowRules
from engine.sampling.triton_bracket import (
    ALIGNED_BY_CHANCE,
    BELOW,
    BINS,
    EDGES,
    FIRST_KEY,
    FLOATS,
    HELD,
    HELDS,
    INFINITE,
    INSIDE,
    INTS,
    LAST_KEY,
    LIMITED,
    MASSES,
    MOST,
    MOST_ID,
    TOP,
    TOP_ID,
    WHOLE,
    best_of,
    gaps_of,
    has_too_many,
    is_drawn,
    is_filtered,
    mass_of,
    place_of,
    sum_of,
)  # fmt: skip
from engine.sampling.triton_noise import gumbel, words_at

DEFAULT = Launch(block_n=2_048, num_warps=4)
SEARCH_TILE = 1_024
MOST_TOKENS = 1 << 20
"""Of a vocabulary: so many masses have a sum."""


@triton.jit  # type: ignore[untyped-decorator]
def keys_of(  # type: ignore[no-untyped-def]
    row, gaps, first, count, packed, best, temperature, TILE: tl.constexpr
):
    """The bits of a tile of gaps: the packed ones, or the row's."""
    if packed:
        places = first + tl.arange(0, TILE)
        gap = tl.load(gaps + places, mask=places < count, other=float("inf"))
    else:
        gap = gaps_of(row, first, count, best, temperature, TILE)
    return gap.to(tl.int32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def weight_of(key, BY_MASS: tl.constexpr):  # type: ignore[no-untyped-def]
    return mass_of(key.to(tl.float32, bitcast=True)) if BY_MASS else (key * 0 + 1).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def held_below(  # type: ignore[no-untyped-def]
    row, gaps, count, packed, best, temperature, low, high,
    BY_MASS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """How many tokens, or how much mass, have a key from `low` to below `high`."""
    sums = tl.zeros((TILE,), tl.int64)
    if high > low:
        for first in range(0, count, TILE):
            key = keys_of(row, gaps, first, count, packed, best, temperature, TILE)
            sums += tl.where((key >= low) & (key < high), weight_of(key, BY_MASS), 0)
    return tl.sum(sums, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def edge_of(  # type: ignore[no-untyped-def]
    row, gaps, count, packed, best, temperature, least, last, target,
    BY_MASS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The smallest key from `least` to `last` up to which tokens, from `least` on, hold `target`,
    and what those of smaller keys hold; three pivots a scan."""
    low, high, held = least, last, tl.full((), 0, tl.int64)
    while low < high:
        step = (high - low) // 4 + 1
        one, two, three = low + step - 1, low + 2 * step - 1, low + 3 * step - 1
        sums_1 = tl.zeros((TILE,), tl.int64)
        sums_2 = tl.zeros((TILE,), tl.int64)
        sums_3 = tl.zeros((TILE,), tl.int64)
        for first in range(0, count, TILE):
            key = keys_of(row, gaps, first, count, packed, best, temperature, TILE)
            weight = tl.where(key >= least, weight_of(key, BY_MASS), 0)
            sums_1 += tl.where(key <= one, weight, 0)
            sums_2 += tl.where(key <= two, weight, 0)
            sums_3 += tl.where(key <= three, weight, 0)
        held_1, held_2, held_3 = (
            tl.sum(sums_1, axis=0), tl.sum(sums_2, axis=0), tl.sum(sums_3, axis=0),
        )  # fmt: skip
        held = tl.where(held_1 < target, held_1, held)
        held = tl.where(held_2 < target, held_2, held)
        held = tl.where(held_3 < target, held_3, held)
        passed = (held_1 < target).to(tl.int32) + (held_2 < target).to(tl.int32)
        low = low + (passed + (held_3 < target).to(tl.int32)) * step
        high = tl.minimum(high, low + step - 1)
    return tl.minimum(low, last), held


@triton.jit  # type: ignore[untyped-decorator]
def limit_of(  # type: ignore[no-untyped-def]
    row, gaps, ints, masses, held, r, num_parts, size, packed, best, temperature, top_k, top_p,
    PARTS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """The largest key that top_k keeps, how many tokens of just that key, and what all that it
    keeps weighs; from the bracket that its edge is in."""
    which = (tl.load(held + r * HELDS + INSIDE + 1) > 0).to(tl.int32)
    inside = tl.load(held + r * HELDS + INSIDE + which)
    count = tl.where(packed, inside, size)
    rank = (top_k - tl.load(held + r * HELDS + HELD + which)).to(tl.int64)
    gaps += which * CAPACITY
    parts = tl.arange(0, PARTS)
    keys = ints + place_of(r, FIRST_KEY + which, INTS, num_parts) + parts
    least = tl.min(tl.load(keys, mask=parts < num_parts, other=INFINITE), axis=0)
    keys = ints + place_of(r, LAST_KEY + which, INTS, num_parts) + parts
    last = tl.max(tl.load(keys, mask=parts < num_parts, other=-1), axis=0)
    last, before = edge_of(
        row, gaps, count, packed, best, temperature, least, last, rank, False, TILE
    )  # fmt: skip
    ties, whole = rank - before, tl.full((), 0, tl.int64)
    if top_p < 1:
        whole = sum_of(masses, r, BELOW + which, num_parts, PARTS) + ties * weight_of(last, True)
        whole += held_below(
            row, gaps, count, packed, best, temperature, least, last, True, TILE
        )  # fmt: skip
    return last, ties, whole


@triton.jit  # type: ignore[untyped-decorator]
def kept_of(  # type: ignore[no-untyped-def]
    row, gaps, ints, masses, held, r, num_parts, size, packed, best, temperature, top_k, top_p,
    count, least, last, PARTS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """The largest key of the first bracket that is kept, and how many tokens of just that key."""
    ties, whole = size.to(tl.int64), sum_of(masses, r, WHOLE, num_parts, PARTS)
    if tl.load(held + r * HELDS + LIMITED) > 0:
        limit, ties, whole = limit_of(
            row, gaps, ints, masses, held, r, num_parts, size, packed, best, temperature,
            top_k, top_p, PARTS, TILE, CAPACITY,
        )  # fmt: skip
        last = limit
    if top_p < 1:
        share = top_p.to(tl.float64) * whole.to(tl.float64)
        target = share.to(tl.int64)
        target += (target.to(tl.float64) < share).to(tl.int64)
        target = tl.maximum(target - sum_of(masses, r, BELOW, num_parts, PARTS), 1)
        edge, before = edge_of(
            row, gaps, count, packed, best, temperature, least, last, target, True, TILE
        )  # fmt: skip
        weight = tl.maximum(weight_of(edge, True), 1)
        needed = tl.maximum((target - before + weight - 1) // weight, 1)
        ties = tl.where(edge == last, tl.minimum(ties, needed), needed)
        last = edge
    return last, tl.minimum(ties, size).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def loudest_of(  # type: ignore[no-untyped-def]
    row, gaps, ids, count, packed, best, temperature, least, last, ties, seed, position, size,
    TILE: tl.constexpr,
):  # fmt: skip
    """The largest noise - gap of what is kept of the bracket, and whose."""
    lanes = tl.arange(0, TILE)
    tops = tl.full((TILE,), float("-inf"), tl.float32)
    holders = tl.zeros((TILE,), tl.int32)
    num_ties = 0
    for first in range(0, count, TILE):
        key = keys_of(row, gaps, first, count, packed, best, temperature, TILE)
        kept, at_edge = (key >= least) & (key < last), key == last
        rank = tl.cumsum(at_edge.to(tl.int32), axis=0) + num_ties
        kept = kept | (at_edge & (rank <= ties))
        num_ties += tl.sum(at_edge.to(tl.int32), axis=0)
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            token = first + lanes
            if packed:
                token = tl.load(ids + token, mask=token < count, other=0)
            noise = gumbel(words_at(token, position, seed))
            gap = key.to(tl.float32, bitcast=True)
            sums = tl.where(kept, noise - gap, float("-inf"))
            holders = tl.where(sums > tops, token, holders)
            tops = tl.maximum(tops, sums)
    most = tl.max(tops, axis=0)
    return most, tl.min(tl.where(tops == most, holders, size), axis=0)


@triton.jit(do_not_specialize_on_alignment=ALIGNED_BY_CHANCE)  # type: ignore[untyped-decorator]
def choose_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, seeds, positions, tokens,
    floats, ints, masses, held, gaps, ids, row_stride, size, num_parts,
    PARTS: tl.constexpr, TILE: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program r: the row's token, of the parts' choices and what is kept of the bracket; -1 when
    no logit is finite."""
    r = tl.program_id(0).to(tl.int64)
    best, temperature = best_of(floats, r, num_parts, PARTS), tl.load(temperatures + r)
    parts = tl.arange(0, PARTS)
    real = parts < num_parts
    token = tl.full((), -1, tl.int32)
    if is_drawn(best, temperature):
        to = place_of(r, MOST, FLOATS, num_parts) + parts
        mosts = tl.load(floats + to, mask=real, other=float("-inf"))
        to = place_of(r, MOST_ID, INTS, num_parts) + parts
        holders = tl.load(ints + to, mask=real, other=size)
        most = tl.max(mosts, axis=0)
        token = tl.min(tl.where(mosts == most, holders, size), axis=0)
        top_k, top_p = tl.load(top_ks + r), tl.load(top_ps + r)
        if is_filtered(top_k, top_p, size):
            inside = tl.load(held + r * HELDS + INSIDE)
            to = place_of(r, FIRST_KEY, INTS, num_parts) + parts
            least = tl.min(tl.load(ints + to, mask=real, other=INFINITE), axis=0)
            to = place_of(r, LAST_KEY, INTS, num_parts) + parts
            last = tl.max(tl.load(ints + to, mask=real, other=-1), axis=0)
            if inside > 0:
                row, gaps = logits + r * row_stride, gaps + 2 * r * CAPACITY
                ids += r * CAPACITY
                packed = has_too_many(held, r, CAPACITY) == 0
                count = tl.where(packed, inside, size)
                last, ties = kept_of(
                    row, gaps, ints, masses, held, r, num_parts, size, packed, best, temperature,
                    top_k, top_p, count, least, last, PARTS, TILE, CAPACITY,
                )  # fmt: skip
                loudest, holder = loudest_of(
                    row, gaps, ids, count, packed, best, temperature, least, last, ties,
                    tl.load(seeds + r), tl.load(positions + r), size, TILE,
                )  # fmt: skip
                token = tl.where(
                    loudest > most, holder,
                    tl.where(loudest == most, tl.minimum(holder, token), token),
                )  # fmt: skip
    elif best > float("-inf"):
        to = place_of(r, TOP, FLOATS, num_parts) + parts
        tops = tl.load(floats + to, mask=real, other=float("-inf"))
        to = place_of(r, TOP_ID, INTS, num_parts) + parts
        holders = tl.load(ints + to, mask=real, other=size)
        token = tl.min(tl.where(tops == best, holders, size), axis=0)
    tl.store(tokens + r, token.to(tl.int64))


def sample_tokens(logits_RV: Tensor, rules: RowRules, *, launch: Launch | None = None) -> Tensor:
    """Token ids [R] int64 on the device of the logits (float32 or bfloat16), -1 for a row without
    a finite logit. A row's token depends on its logits and its rules alone. Nothing waits for the
    device. `launch` for the tuner: tokens of a part, and warps."""
    num_rows, size = logits_RV.shape
    assert size <= MOST_TOKENS, f"a vocabulary of {size} tokens: masses of {MOST_TOKENS} have a sum"
    device = logits_RV.device
    tokens_R = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return tokens_R
    capacity = triton_bracket.CAPACITY
    launch = launch or chosen("sample", "any", device, DEFAULT)
    tile = launch.block_n
    num_parts = -(-size // tile)

    def scratch(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=device)

    floats, ints = (
        scratch(FLOATS.value, num_parts, dtype=torch.float32),
        scratch(INTS.value, num_parts, dtype=torch.int32),
    )
    masses, counts = (
        scratch(MASSES.value, num_parts, dtype=torch.int64),
        scratch(2, num_parts, BINS, dtype=torch.int32),
    )
    edges = scratch(EDGES.value, dtype=torch.float32)
    held = scratch(HELDS.value, dtype=torch.int32)
    gaps, ids = scratch(2, capacity, dtype=torch.float32), scratch(capacity, dtype=torch.int32)
    stride, parts = as_stride(logits_RV, 0), power_of_two(num_parts)
    grid = (num_rows, num_parts)
    columns = (rules.temperature_R, rules.top_k_R, rules.top_p_R)
    place = (rules.seed_R, rules.position_R)
    whole_rules = (*columns, rules.min_p_R, *place)
    triton_bracket.tops_kernel[grid](
        logits_RV, floats, ints, stride, size, num_parts, TILE=tile, **launch.options
    )
    for again, plan in ((False, triton_plan.plan_kernel), (True, triton_plan.narrow_kernel)):
        triton_bracket.weigh_kernel[grid](
            logits_RV, *whole_rules, floats, ints, masses, counts, edges, held,
            stride, size, num_parts,
            AGAIN=again, PARTS=parts, TILE=tile, BINS=BINS, CAPACITY=capacity, **launch.options,
        )  # fmt: skip
        plan[num_rows,](
            *columns, floats, ints, masses, counts, edges, held, size, num_parts,
            PARTS=parts, BINS=BINS, CAPACITY=capacity,
            **Launch(num_warps=8).options,
        )  # fmt: skip
    triton_bracket.pack_kernel[grid](
        logits_RV, *whole_rules, floats, ints, masses, edges, held, gaps, ids,
        stride, size, num_parts, PARTS=parts, TILE=tile, CAPACITY=capacity, **launch.options,
    )  # fmt: skip
    choose_kernel[num_rows,](
        logits_RV, *columns, *place, tokens_R, floats, ints, masses, held, gaps, ids,
        stride, size, num_parts, PARTS=parts, TILE=SEARCH_TILE, CAPACITY=capacity,
        **Launch(num_warps=4).options,
    )  # fmt: skip
    return tokens_R
