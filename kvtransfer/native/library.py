"""The C library of `kvtransfer`, built where the machine has a compiler: its functions declared.

Without a compiler there is none, and the callers' twins in Python do the same, slower.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Final

from kvtransfer.sum_kinds import WORD_SUM, XXH3, SumKind
from protocol.process.kernels.c_kernels import Kernels, NoKernels

log = logging.getLogger(__name__)

KERNELS: Final = Kernels(
    name="kvcopy",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared"),
)
SUM_BYTES: Final = 448
"""Room for the sum of a piece that comes bit by bit."""
SUM_NUMBERS: Final[dict[SumKind, int]] = {XXH3: 0, WORD_SUM: 1}
"""As copy.h numbers the kinds."""
OUTSIDE: Final = 1
"""What cannot be done, as the functions answer: a range lies outside its span."""
UNFIT: Final = 2
"""The sum takes no such ranges."""
_POINTERS: Final = ("head", "base", "offsets", "sizes", "starts", "sums", "sum")
_NUMBERS: Final = (
    *("kind", "head_bytes", "num_ranges", "num_pieces", "range", "skip", "piece", "summed"),
    *("summed_skip", "fd", "state", "moved_bytes"),
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
    return declared(library)


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same, its functions told what they take."""
    at, word, signed, number = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int
    library.baton_kv_copy.argtypes = [
        *(at, word, at, at, word, at, at, signed, at, signed, signed, at),
    ]  # fmt: skip
    library.baton_kv_check.argtypes = [word, at, word, at, at, signed, at, signed, signed, at]
    library.baton_kv_stream_from.argtypes = [signed]
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
    library.baton_kv_sum_bytes.restype = signed
    assert library.baton_kv_flow_bytes() == ctypes.sizeof(FlowFields)
    assert library.baton_kv_sum_bytes() <= SUM_BYTES
    return library
