"""The C kernel of the options: built where the machine has a compiler, its arguments declared."""

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from protocol.process.kernels.c_kernels import Kernels, NoKernels
from router.placement.row import ROW

log = logging.getLogger("baton.placement")

KERNELS: Final = Kernels(
    name="placement",
    folder=Path(__file__).parent,
    flags=("-O3", "-march=native", "-ffp-contract=off", "-std=gnu11", "-fPIC", "-shared"),
)
"""Without contraction: the twin rounds after each operation, and ties are decided by the last
bit."""
_NUMBERS: Final = (
    *("num_tokens", "total_tokens", "first_tokens", "expected_output", "num_reusable"),
    *("now", "max_age_s", "coming_streams", "stream_part", "inter_token_target_s"),
    "worker_queue_s",
)


class QueryFields(ctypes.Structure):
    """`Query` in options.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("rows", "open", "depths", "held")),
        *((name, ctypes.c_int64) for name in ("num_slots", "num_depths", "num_compats")),
        *((name, ctypes.c_double) for name in _NUMBERS),
        *((name, ctypes.c_int64) for name in ("kept_prefill", "kept_decode")),
    ]  # fmt: skip


class OptionFields(ctypes.Structure):
    """`Option` in options.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("decode", "prefill", "source")),
        *((name, ctypes.c_double) for name in ("cost_s", "num_uncached", "num_pulled")),
        ("terms", ctypes.c_double * 9),
    ]  # fmt: skip


@cache
def kernel() -> Callable[[QueryFields, Any], int] | None:
    """`baton_find_options`, or None where it cannot be built: said once."""
    try:
        library = KERNELS.load()
    except NoKernels as error:
        remedy = "install a C compiler: a placement among 128 workers takes milliseconds without"
        log.warning("no C kernel of placement", extra={"why": str(error), "remedy": remedy})
        return None
    library.baton_row_bytes.restype = ctypes.c_int64
    assert library.baton_row_bytes() == ROW.itemsize
    find = library.baton_find_options
    find.argtypes = [ctypes.POINTER(QueryFields), ctypes.POINTER(OptionFields)]
    find.restype = ctypes.c_int32
    return find
