"""The random words of a whole vocabulary, in C; `engine.ops.philox` where nothing compiles."""

from ctypes import c_int64, c_uint32, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.ops import philox
from engine.ops.cpu.build import NoKernels, bound, load


def all_words(size: int, *, seed: int, position: int) -> NDArray[np.unsignedinteger[Any]]:
    """As `engine.ops.philox.all_words`, its twin."""
    run = words_kernel()
    if run is None:
        return philox.all_words(size, seed=seed, position=position)
    counter, key = philox.place(seed=seed, position=position)
    words_N = np.empty(-(-size // 4) * 4, dtype=np.uint32)
    run(*counter, *key, len(words_N) // 4, words_N.ctypes.data)
    return words_N[:size]


@cache
def words_kernel() -> Any:
    """None without kernels: `engine.ops.choose` has said why."""
    try:
        return bound(load(), "baton_words", *[c_uint32] * 4, c_int64, c_void_p)
    except NoKernels:
        return None
