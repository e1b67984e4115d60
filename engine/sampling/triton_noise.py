"""The noise of `engine.ops.philox` in a kernel, in float32. Decides nothing."""

import triton
import triton.language as tl

_SMALL = tl.constexpr(0.0625)


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


@triton.jit
def words_at(ids, position, seed):  # type: ignore[no-untyped-def]
    """The words of any ids, at four times the work of `words_of`."""
    nothing = (ids * 0).to(tl.uint32)
    w0, w1, w2, w3 = philox(
        nothing + position.to(tl.uint32), nothing + (position >> 32).to(tl.uint32),
        (ids // 4).to(tl.uint32), nothing, seed.to(tl.uint32), (seed >> 32).to(tl.uint32),
    )  # fmt: skip
    lane = ids % 4
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
