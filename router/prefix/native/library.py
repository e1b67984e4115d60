"""The C library of the prefix index, built where there is a compiler: its functions declared.

They are called with the interpreter's lock held: each takes microseconds, and to let go of the lock
is to wait for whoever took it. So no two of them ever run at once.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Final

from protocol.process.kernels.c_kernels import Kernels, NoKernels

log = logging.getLogger(__name__)

KERNELS: Final = Kernels(
    name="prefix",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"),
)


@cache
def kernels() -> ctypes.PyDLL | None:
    """The library, or None where it cannot be built: said once."""
    try:
        loaded = KERNELS.load()
    except NoKernels as error:
        remedy = "install a C compiler; until then a slower index in Python serves"
        log.warning("no C prefix index", extra={"why": str(error), "remedy": remedy})
        return None
    library = ctypes.PyDLL(loaded._name, handle=loaded._handle)
    _declare_functions(library)
    return library


def _declare_functions(library: ctypes.PyDLL) -> None:
    at, text = ctypes.c_void_p, ctypes.c_char_p
    word, long = ctypes.c_uint32, ctypes.c_uint64
    library.baton_prefix_make.argtypes = [long, word, long]
    library.baton_prefix_make.restype = at
    library.baton_prefix_drop.argtypes = [at]
    library.baton_prefix_drop.restype = None
    library.baton_prefix_reserve_slots.argtypes = [at, word]
    library.baton_prefix_store.argtypes = [at, word, text, long]
    library.baton_prefix_store.restype = long
    library.baton_prefix_evict.argtypes = [at, word, text, long]
    library.baton_prefix_evict.restype = None
    library.baton_prefix_set_closed.argtypes = [at, word, ctypes.c_int]
    library.baton_prefix_set_closed.restype = None
    library.baton_prefix_walk.argtypes = [at, text, word, at, at, word, at]
    library.baton_prefix_begin_sweep.argtypes = [at, at, long]
    library.baton_prefix_begin_sweep.restype = None
    library.baton_prefix_sweep.argtypes = [at, word]
    for count in ("blocks", "lost", "sets"):
        function = getattr(library, f"baton_prefix_num_{count}")
        function.argtypes, function.restype = [at], long
    library.baton_prefix_see.argtypes = [at, at, long, text, long, at]
    library.baton_prefix_see.restype = long
