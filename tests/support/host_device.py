"""A device that is this host: what is launched has happened, a captured step is the step.

Implements `engine.runner.gpu.device.Device`. For tests of the device path without a GPU; a worker
on a CPU runs `engine.runner.cpu`. Says nothing about speed or memory.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.limits import DeviceSize
from engine.runner.gpu.device import Step
from protocol.process.machine import free_memory_bytes

CPU = torch.device("cpu")
SIZE = DeviceSize(memory_bytes=8 << 30, num_multiprocessors=8)


class _Happened:
    def wait(self) -> None:
        """It has."""


@dataclass(slots=True, kw_only=True)
class HostDevice:
    """`depth` as of a GPU, so that tests launch ahead as a GPU does."""

    depth: int = 2
    name: str = "host"
    where: torch.device = CPU
    size: DeviceSize = SIZE
    key: str = f"host of {os.getpid()}"

    def bind(self) -> None:
        """Every thread is on the host."""

    def host_bytes(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def record(self) -> _Happened:
        return _Happened()

    def capture(self, step: Step) -> Step:
        step()
        return step

    def free_bytes(self) -> int:
        return free_memory_bytes()

    def held_bytes(self) -> int:
        """0: the host has no counter of its own for it."""
        return 0

    def peak_bytes(self, step: Step) -> int:
        """0: the host has no counter of its own for it."""
        step()
        return 0
