"""The engine's C kernels, brought by an image or built once per machine, and loaded beside torch.

Without either `load` raises `NoKernels` and the torch twins serve.
"""

import ctypes
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from protocol.process.kernels.c_kernels import Kernels, NoKernels

KERNELS = Kernels(
    name="kernels",
    folder=Path(__file__).parent,
    flags=(
        *("-O2", "-march=native", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno"),
        *("-fopenmp", "-fPIC", "-shared"),
    ),
)


@cache
def load() -> ctypes.CDLL:
    """The kernels, built if this machine has not built them yet. Raises NoKernels."""
    import_module("torch")  # first: its libgomp then serves the kernels too, one thread pool
    return KERNELS.load()


def bound(kernels: ctypes.CDLL, name: str, *argtypes: Any, answers: Any = None) -> Any:
    """The kernel of that name; most answer nothing."""
    function = getattr(kernels, name)
    function.argtypes, function.restype = argtypes, answers
    return function


__all__ = ["KERNELS", "NoKernels", "bound", "load"]
