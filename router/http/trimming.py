"""Memory of large requests back to the system.

glibc keeps what threads free in arenas of their own, for good: 8 MB of text tokenised once in each
thread would stay. Elsewhere than on glibc this does nothing.
"""

import asyncio
import ctypes
from collections.abc import Callable

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_TRIM_AFTER_BYTES = 1 << 20
_TRIM_AFTER_S = 1.0
ALTERNATIVE_BYTES = 100
"""Of an answer that is collected: a token, or an alternative with its bytes and probability."""


def use_few_arenas() -> None:
    """Call it before threads start. Large blocks come from mmap, and return at once."""
    if mallopt := _of_glibc("mallopt"):
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 256 << 10)


class Trimming:
    """Made anywhere; `count` is for the event loop."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._trim = _of_glibc("malloc_trim")

    def count(self, num_bytes: int) -> None:
        """Bodies or answers of so many bytes are done with. Trims soon, when they add up: in a
        thread, for it takes milliseconds, and not more than once a second."""
        before, self._num_bytes = self._num_bytes, self._num_bytes + num_bytes
        if before < _TRIM_AFTER_BYTES <= self._num_bytes:
            asyncio.get_running_loop().call_later(_TRIM_AFTER_S, self._trim_now)

    def _trim_now(self) -> None:
        self._num_bytes = 0
        if self._trim is not None:
            asyncio.get_running_loop().run_in_executor(None, self._trim, 0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return function
