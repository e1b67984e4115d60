"""The C library of `kvtransfer`, built where the machine has a compiler: its functions declared.

Without a compiler there is none, and the callers' twins in Python do the same, slower.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Final

from protocol.process.kernels.c_kernels import Kernels, NoKernels

log = logging.getLogger(__name__)

KERNELS: Final = Kernels(
    name="kvcopy",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"),
)
HASH_BYTES: Final = 128
"""Room for the hash of a piece that comes bit by bit."""
_POINTERS: Final = ("head", "base", "offsets", "sizes", "starts", "sums", "hash")
_NUMBERS: Final = (
    *("head_bytes", "num_ranges", "num_pieces", "range", "skip", "piece", "hashed"),
    *("hashed_skip", "fd", "state", "moved_bytes", "word_sum", "word_number"),
)


class FlowFields(ctypes.Structure):
    """`Flow` in flow.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    ]  # fmt: skip


@cache
def kernels() -> ctypes.CDLL | None:
    """The library, or None where it cannot be built: said once."""
    try:
        library = KERNELS.load()
    except NoKernels as error:
        log.warning(
            "no C kernels, copies are slower: install a C compiler", extra={"why": str(error)}
        )
        return None
    _declare_functions(library)
    assert library.baton_kv_flow_bytes() == ctypes.sizeof(FlowFields)
    assert library.baton_kv_hash_bytes() <= HASH_BYTES
    return library


def _declare_functions(library: ctypes.CDLL) -> None:
    at, word, signed, number = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int
    library.baton_kv_copy.argtypes = [at, word, at, at, word, at, at, at, signed, at]
    library.baton_kv_copy_words.argtypes = library.baton_kv_copy.argtypes
    library.baton_kv_check.argtypes = [word, at, word, at, at, at, signed, at]
    library.baton_kv_copy_pieces.argtypes = [at, word, at, word, at, word]
    library.baton_kv_copy_pieces.restype = signed
    library.baton_kv_shut_job.argtypes = [at]
    library.baton_kv_begin_job.argtypes = [at, word, word, word]
    library.baton_kv_begin_job.restype = word
    library.baton_kv_await_job.argtypes = [at, signed]
    library.baton_kv_job_bytes.restype = signed
    library.baton_kv_flow.argtypes = [at, signed, at, signed, number, signed, signed, signed]
    library.baton_kv_flow.restype = signed
    library.baton_kv_flow_bytes.restype = signed
    library.baton_kv_hash_bytes.restype = signed
