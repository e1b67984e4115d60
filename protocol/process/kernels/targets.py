"""The processors that kernels are built for ahead, and which of them this one is.

A target is what a compiler is told and what the processor must then have; what Linux says of it
(`/proc/cpuinfo`) leaves out what the kernel has not switched on.
"""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of processor."""

    name: str
    machine: str  # as uname names it
    flags: tuple[str, ...]  # of GCC and clang, in place of -march=native
    needs: frozenset[str]  # of the line `flags` in /proc/cpuinfo


_V3: Final = frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"))
_V4: Final = _V3 | frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
TARGETS: Final = (
    Target(
        name="x86-64-v4-bf16",
        machine="x86_64",
        flags=("-march=x86-64-v4", "-mavx512bf16"),
        needs=_V4 | {"avx512_bf16"},
    ),
    Target(name="x86-64-v4", machine="x86_64", flags=("-march=x86-64-v4",), needs=_V4),
    Target(name="x86-64-v3", machine="x86_64", flags=("-march=x86-64-v3",), needs=_V3),
    Target(name="aarch64", machine="aarch64", flags=("-march=armv8-a",), needs=frozenset()),
)
"""The fastest of a machine first."""


def targets_of(machine: str, features: Iterable[str]) -> tuple[Target, ...]:
    """Those that such a processor runs, the fastest first."""
    there = frozenset(features)
    return tuple(each for each in TARGETS if each.machine == machine and each.needs <= there)


def targets_here() -> tuple[Target, ...]:
    """Those that this machine's processor runs, the fastest first."""
    return targets_of(platform.machine(), features_here())


def features_here() -> frozenset[str]:
    """What every core of this machine has; empty where Linux does not say."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    told = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return frozenset.intersection(*map(frozenset, told)) if told else frozenset()
