"""A kernel with its constants: what it was compiled to is launched again at the cost of a look-up.

Triton's own launch takes some 20 us of Python to find the same compiled kernel each time. What a
compiled kernel depends on: the device, the constants and the dtypes, for which there is a `Bound`
each; whether addresses are multiples of 16, or else the launch is an ordinary one; and the numbers
that Triton specialises on, by which it is looked up. Under Triton's interpreter, with a profiler's
hooks, under a Triton whose launcher was not read (`LAUNCHED_ALIKE`), and for whatever stands for a
kernel in tests, every launch is an ordinary one.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

LAUNCHED_ALIKE = ((3, 6), (3, 10))
"""From this Triton on, and before that, a compiled kernel's `run` takes what is given here:
`tests/kernels/test_bound.py`, under the oldest and the newest."""
_ALIGNED = 15
"""Addresses are specialised on being multiples of 16."""


def dependent(on: bool) -> dict[str, bool]:
    """The option of a launch that may begin before the one ahead of it ends (CUDA's programmatic
    dependent launch, sm_90 and later); its kernel waits for that end before it reads. Empty where
    it is off: the interpreter and older chips know no such option."""
    return {"launch_pdl": True} if on else {}


def launched_alike(version: str) -> bool:
    """Whether what Triton `version` compiled can be launched from here."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return LAUNCHED_ALIKE[0] <= (major, minor) < LAUNCHED_ALIKE[1]


@triton.jit  # type: ignore[untyped-decorator]
def begin_early(DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a kernel does before it reads or returns, where it is `dependent`: waits for the one
    ahead, and lets the next one come."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


class Bound:
    """One kernel with its constants, for arguments of one device and the same dtypes each time,
    None in the same places."""

    __slots__ = ("_compiled", "_kernel", "_named", "_numbers", "_pointers", "_values")

    def __init__(self, constants: Mapping[str, object], options: Mapping[str, object]) -> None:
        """The kernel's parameters are addresses and numbers, and then `constants`."""
        self._named: Mapping[str, object] = {**constants, **options}
        self._values: tuple[object, ...] = ()
        self._kernel: object = None
        self._compiled: dict[object, Any] = {}
        self._pointers: tuple[int, ...] = ()
        self._numbers: Callable[[tuple[Any, ...]], object] = len

    def launch(self, kernel: Any, grid: tuple[int, int, int], *arguments: Any) -> None:
        """`kernel` the same each time, but for tests: a call that finds another is ordinary."""
        bits = 0
        for number in self._pointers:
            bits |= arguments[number].data_ptr()
        found = self._compiled.get(self._numbers(arguments))
        if (
            found is None
            or kernel is not self._kernel
            or bits & _ALIGNED
            or knobs.runtime.launch_enter_hook.calls
        ):
            self._launch(kernel, grid, arguments)
            return
        active = driver.active
        stream = active.get_current_stream(active.get_current_device())
        found.run(
            *grid, stream, found.function, found.packed_metadata, None, None, None, *arguments,
            *self._values,
        )  # fmt: skip

    def _launch(self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        """Triton's launch; what it compiled is kept if it is for aligned addresses."""
        made = kernel[grid](*arguments, **self._named)
        if not (isinstance(kernel, JITFunction) and launched_alike(triton.__version__)):
            return
        if self._kernel is not kernel:
            self._look_at(kernel, arguments)
        if not any(arguments[number].data_ptr() & _ALIGNED for number in self._pointers):
            self._compiled[self._numbers(arguments)] = made

    def _look_at(self, kernel: Any, arguments: tuple[Any, ...]) -> None:
        """Which arguments are addresses, and which numbers a kernel is specialised on."""
        params = kernel.params[: len(arguments)]
        addresses = [n for n, one in enumerate(arguments) if isinstance(one, Tensor)]
        numbers = [
            n for n, one in enumerate(arguments)
            if isinstance(one, int | float) and not params[n].do_not_specialize
        ]  # fmt: skip
        self._kernel, self._compiled = kernel, {}
        self._values = tuple(self._named[name] for name in kernel.arg_names[len(arguments) :])
        self._numbers = itemgetter(*numbers) if numbers else len
        self._pointers = tuple(n for n in addresses if not params[n].do_not_specialize_on_alignment)
