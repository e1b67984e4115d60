"""The C library of the fast path, built where there is a compiler: its functions declared.

They are called with the interpreter's lock held: a step takes a millisecond at most, and to let go
of the lock is to wait for whoever took it. So no two of them ever run at once.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Final

from protocol.process.kernels.c_kernels import Kernels, NoKernels

log = logging.getLogger(__name__)

KERNELS: Final = Kernels(
    name="fast-path",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"),
)


class Passed(ctypes.Structure):
    """What is left of a step for others: as in `step.c`."""

    num_left: int
    num_stuck: int
    _fields_ = (
        ("num_left", ctypes.c_int64),
        ("num_stuck", ctypes.c_int64),
        ("left", ctypes.c_void_p),
        ("stuck", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


@cache
def kernels() -> ctypes.PyDLL | None:
    """The library, or None where it cannot be built: said once."""
    try:
        loaded = KERNELS.load()
    except NoKernels as error:
        remedy = "install a C compiler; until then a token costs a router twice as much"
        log.warning("no fast path", extra={"why": str(error), "remedy": remedy})
        return None
    library = ctypes.PyDLL(loaded._name, handle=loaded._handle)
    _declare_functions(library)
    return library


def _declare_functions(library: ctypes.PyDLL) -> None:
    at, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    size, flag, seconds = ctypes.c_size_t, ctypes.c_int, ctypes.c_double
    library.baton_streams_make.argtypes = [at, number, at, at]
    library.baton_streams_make.restype = at
    library.baton_streams_drop.argtypes = [at]
    library.baton_streams_drop.restype = None
    library.baton_streams_add.argtypes = [
        at, text, size, number, number, number, flag, flag, text, size, size, seconds,
    ]  # fmt: skip
    library.baton_streams_add.restype = number
    library.baton_streams_num_ids.argtypes = [at, number]
    library.baton_streams_num_ids.restype = number
    library.baton_streams_num_rest.argtypes = [at, number]
    library.baton_streams_num_rest.restype = size
    library.baton_streams_last_at.argtypes = [at, number]
    library.baton_streams_last_at.restype = seconds
    library.baton_streams_take.argtypes = [at, number, at, at]
    library.baton_streams_take.restype = None
    library.baton_streams_pass_step.argtypes = [at, text, size, number, seconds, at]
