"""What root may do beyond others, laid down for a while: tests see what another user would."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_OTHERS_FILES = 0b1110
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: modes and owners of files mean nothing."""


@contextmanager
def without_rights_over_files() -> Iterator[None]:
    """Of this thread, and of those that it starts meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    had = (ctypes.c_uint32 * 6)()
    _check(libc.capget(head, had))
    fewer = (ctypes.c_uint32 * 6)(*had)
    fewer[0] &= ~_OTHERS_FILES  # the effective ones: the permitted ones bring them back
    _check(libc.capset(head, fewer))
    try:
        yield
    finally:
        _check(libc.capset(head, had))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
