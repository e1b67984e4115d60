"""Chooses a token of each row without sorting it. Twin: `engine.sampling.sampler`.

With gap = (best - score) / temperature, a float32 that is never negative, a filter keeps the
tokens of the smallest gaps, equal ones by id: so min_p, top_k and top_p are each a largest gap
and how many tokens may have exactly that. The bits of such a float order as an integer does; its
edge is found by a search with several pivots a pass over the row (the idea of FlashInfer's
sorting-free sampling, Ye et al., 2025, made exact). Among what is kept the Gumbel noise of
`engine.ops.philox` decides, in float32 here.
"""

# Shapes: R rows, V vocabulary.

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.ops.triton.launch import Launch, as_stride, chosen
from engine.sampling.rows import RowRules
from engine.sampling.sampler import GREEDY_BELOW

DEFAULT = Launch(block_n=4_096, num_warps=8)
_GREEDY_BELOW = tl.constexpr(GREEDY_BELOW)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_INFINITE = tl.constexpr(0x7F80_0000)
_SMALL = tl.constexpr(0.0625)
_POINTERS = ["temperatures", "top_ks", "top_ps", "min_ps", "seeds", "positions", "tokens"]


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 on uint32 (`engine.ops.philox.philox4x32`)."""
    for _ in tl.static_range(10):
        one_high, one_low = tl.umulhi(c0, 0xD251_1F53), c0 * 0xD251_1F53
        two_high, two_low = tl.umulhi(c2, 0xCD9E_8D57), c2 * 0xCD9E_8D57
        c0, c1, c2, c3 = two_high ^ c1 ^ k0, two_low, one_high ^ c3 ^ k1, one_low
        k0, k1 = k0 + 0x9E37_79B9, k1 + 0xBB67_AE85
    return c0, c1, c2, c3


@triton.jit
def gumbel(word):  # type: ignore[no-untyped-def]
    """-log(-log(u)), u = (word + 0.5) / 2^32, to a few units in the last place: where u is near 1
    float32 has lost it, so that -log(u) is summed from 1 - u instead."""
    from_one = ((word ^ 0xFFFF_FFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    tail = 1 / 6 + from_one * (1 / 7)
    tail = 1 / 3 + from_one * (1 / 4 + from_one * (1 / 5 + from_one * tail))
    series = from_one * (1 + from_one * (1 / 2 + from_one * tail))
    exact = -tl.log((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    return -tl.log(tl.where(from_one < _SMALL, series, exact))


@triton.jit  # type: ignore[untyped-decorator]
def words_of(first, position, seed, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The words of ids first .. first + TILE, which is a multiple of 4."""
    counter = (first // 4 + tl.arange(0, TILE // 4)).to(tl.uint32)
    nothing = counter * 0
    w0, w1, w2, w3 = philox(
        nothing + position.to(tl.uint32), nothing + (position >> 32).to(tl.uint32),
        counter, nothing, seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit  # type: ignore[untyped-decorator]
def scores_of(row, first, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of scores; NaN, and what lies beyond the row, counts as -inf."""
    ids = first + tl.arange(0, TILE)
    score = tl.load(row + ids, mask=ids < size, other=float("-inf")).to(tl.float32)
    score = tl.where(score == score, score, float("-inf"))
    return tl.where(score > _LARGEST, _LARGEST, score)


@triton.jit  # type: ignore[untyped-decorator]
def gaps_of(row, first, size, best, temperature, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.abs(tl.div_rn(best - scores_of(row, first, size, TILE), temperature))


@triton.jit  # type: ignore[untyped-decorator]
def held(  # type: ignore[no-untyped-def]
    row, size, best, temperature, last, BY_MASS: tl.constexpr, TILE: tl.constexpr
):
    """How many tokens, or how much mass, have a gap whose key is at most `last`."""
    sums = tl.zeros((TILE,), tl.float32)
    for first in range(0, size, TILE):
        gap = gaps_of(row, first, size, best, temperature, TILE)
        mass = tl.exp(-gap) if BY_MASS else tl.full((TILE,), 1.0, tl.float32)
        sums += tl.where(gap.to(tl.int32, bitcast=True) <= last, mass, 0.0)
    return tl.sum(sums, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def edge_of(  # type: ignore[no-untyped-def]
    row, size, best, temperature, last, target, BY_MASS: tl.constexpr, TILE: tl.constexpr
):
    """The smallest key, at most `last`, up to which tokens hold `target`; three pivots a pass."""
    low, high = 0, last
    while low < high:
        step = (high - low) // 4 + 1
        one, two, three = low + step - 1, low + 2 * step - 1, low + 3 * step - 1
        sums_1 = tl.zeros((TILE,), tl.float32)
        sums_2 = tl.zeros((TILE,), tl.float32)
        sums_3 = tl.zeros((TILE,), tl.float32)
        for first in range(0, size, TILE):
            gap = gaps_of(row, first, size, best, temperature, TILE)
            mass = tl.exp(-gap) if BY_MASS else tl.full((TILE,), 1.0, tl.float32)
            key = gap.to(tl.int32, bitcast=True)
            sums_1 += tl.where(key <= one, mass, 0.0)
            sums_2 += tl.where(key <= two, mass, 0.0)
            sums_3 += tl.where(key <= three, mass, 0.0)
        passed = (tl.sum(sums_1, axis=0) < target).to(tl.int32)
        passed += (tl.sum(sums_2, axis=0) < target).to(tl.int32)
        passed += (tl.sum(sums_3, axis=0) < target).to(tl.int32)
        low = low + passed * step
        high = tl.minimum(high, low + step - 1)
    return tl.minimum(low, last)


@triton.jit  # type: ignore[untyped-decorator]
def kept_of(  # type: ignore[no-untyped-def]
    row, size, best, temperature, top_k, top_p, min_p, TILE: tl.constexpr
):
    """The largest key that the filters keep, and how many tokens of just that key."""
    last, ties = tl.full((), _INFINITE - 1, tl.int32), size
    if min_p > 0:
        widest = tl.abs(tl.log(min_p))  # 0.0 for 1: -0.0 has other bits
        last = tl.minimum(last, widest.to(tl.int32, bitcast=True))
    if (top_k > 0) & (top_k < size):  # noqa: SIM102 -- `and` would scan the row for nothing
        if held(row, size, best, temperature, last, False, TILE) > top_k:
            last = edge_of(row, size, best, temperature, last, top_k * 1.0, False, TILE)
            below = held(row, size, best, temperature, last - 1, False, TILE)
            ties = top_k - below.to(tl.int32)
    if top_p < 1:
        weight = tl.exp(-last.to(tl.float32, bitcast=True))
        below = held(row, size, best, temperature, last - 1, True, TILE)
        if ties == size:
            mass = held(row, size, best, temperature, last, True, TILE)
        else:
            mass = below + ties * weight
        target = top_p * mass
        if below < target:  # it takes tokens of the last key
            ties = tl.minimum(ties, needed(target - below, weight))
        else:
            last = edge_of(row, size, best, temperature, last, target, True, TILE)
            below = held(row, size, best, temperature, last - 1, True, TILE)
            ties = needed(target - below, tl.exp(-last.to(tl.float32, bitcast=True)))
    return last, ties


@triton.jit
def needed(mass, weight):  # type: ignore[no-untyped-def]
    """How many tokens of this weight hold the mass; at least one."""
    count = tl.ceil(mass / tl.maximum(weight, 1e-37))
    return tl.maximum(tl.minimum(count, 1e9).to(tl.int32), 1)


@triton.jit  # type: ignore[untyped-decorator]
def best_of(row, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest score, and the lowest id that has it."""
    lanes = tl.arange(0, TILE)
    tops = tl.full((TILE,), float("-inf"), tl.float32)
    holders = tl.zeros((TILE,), tl.int32)
    for first in range(0, size, TILE):
        score = scores_of(row, first, size, TILE)
        holders = tl.where(score > tops, first + lanes, holders)
        tops = tl.maximum(tops, score)
    best = tl.max(tops, axis=0)
    return best, tl.min(tl.where(tops == best, holders, size), axis=0)


@triton.jit(do_not_specialize_on_alignment=_POINTERS)  # type: ignore[untyped-decorator]
def sample_kernel(  # type: ignore[no-untyped-def]
    logits, temperatures, top_ks, top_ps, min_ps, seeds, positions, tokens, row_stride, size,
    TILE: tl.constexpr,
):  # fmt: skip
    """Program r chooses for row r; -1 when no logit is finite."""
    r = tl.program_id(0).to(tl.int64)
    row = logits + r * row_stride
    best, token = best_of(row, size, TILE)
    temperature = tl.load(temperatures + r)
    if best == float("-inf"):
        token = -1
    elif temperature >= _GREEDY_BELOW:
        last, ties = kept_of(
            row, size, best, temperature,
            tl.load(top_ks + r), tl.load(top_ps + r), tl.load(min_ps + r), TILE,
        )  # fmt: skip
        seed, position = tl.load(seeds + r), tl.load(positions + r)
        lanes = tl.arange(0, TILE)
        tops = tl.full((TILE,), float("-inf"), tl.float32)
        holders = tl.zeros((TILE,), tl.int32)
        num_ties = 0
        for first in range(0, size, TILE):
            gap = gaps_of(row, first, size, best, temperature, TILE)
            key = gap.to(tl.int32, bitcast=True)
            kept = key < last
            at_edge = key == last
            edge_here = tl.sum(at_edge.to(tl.int32), axis=0)
            if edge_here > 0:
                rank = tl.cumsum(at_edge.to(tl.int32), axis=0) + num_ties
                kept = kept | (at_edge & (rank <= ties))
                num_ties += edge_here
            if tl.max(kept.to(tl.int32), axis=0) > 0:
                noise = gumbel(words_of(first, position, seed, TILE))
                sums = tl.where(kept, noise - gap, float("-inf"))
                holders = tl.where(sums > tops, first + lanes, holders)
                tops = tl.maximum(tops, sums)
        most = tl.max(tops, axis=0)
        token = tl.min(tl.where(tops == most, holders, size), axis=0)
    tl.store(tokens + r, token.to(tl.int64))


def sample_tokens(logits_RV: Tensor, rules: RowRules, *, launch: Launch | None = None) -> Tensor:
    """Token ids [R] int64 on the device of the logits (float32 or bfloat16), -1 for a row without
    a finite logit. A row's token depends on its logits and its rules alone. Nothing waits for the
    device. `launch` for the tuner."""
    num_rows, size = logits_RV.shape
    tokens_R = torch.empty(num_rows, dtype=torch.int64, device=logits_RV.device)
    if not num_rows:
        return tokens_R
    launch = launch or chosen("sample", "any", logits_RV.device, DEFAULT)
    sample_kernel[(num_rows,)](
        logits_RV, rules.temperature_R, rules.top_k_R, rules.top_p_R, rules.min_p_R,
        rules.seed_R, rules.position_R, tokens_R, as_stride(logits_RV, 0), size,
        TILE=launch.block_n, **launch.options,
    )  # fmt: skip
    return tokens_R
