"""Random numbers that are a function of a counter: nothing to store, nothing to hand over.

Called by `engine.sampler`. Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011); checked against the vectors of its reference library.
"""

Words = tuple[int, int, int, int]
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words, evenly distributed over counters and keys."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high, low = divmod(c0 * 0xD2511F53, 1 << 32)
        high2, low2 = divmod(c2 * 0xCD9E8D57, 1 << 32)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high ^ c3 ^ k1, low
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(*, seed: int, position: int) -> float:
    """The number of [0, 1) that belongs to this seed and position; 53 bits."""
    seed, position = seed & (1 << 64) - 1, position & (1 << 64) - 1
    counter = (position & _MASK, position >> 32, 0, 0)
    high, low, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32))
    return ((high << 21) | (low >> 11)) * 2.0**-53
