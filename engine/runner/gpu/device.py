"""What a runner needs of a device: memory to copy from and to, events, captured steps.

One stream: what is launched happens in that order, perhaps before the call returns.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from engine.limits import DeviceSize

Step = Callable[[], None]
"""Launches work that depends on nothing but buffers that stay where they are."""


class StepEvent(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Returns when everything launched before it is done; lets other threads run. Raises
        RuntimeError when the device has failed, StepHung when it does not answer."""


class Device(Protocol):
    """One device and the one stream that an engine computes on."""

    name: str
    """For logs and results."""
    key: str
    """The same in every process that uses the device, however it numbers those that it sees."""
    where: torch.device
    size: DeviceSize
    """Of the whole device, whoever else uses it."""
    depth: int
    """Steps that may be launched before the first one's tokens are read."""

    def bind(self) -> None:
        """Make the device and the engine's stream current for the calling thread; cheap."""

    def host_bytes(self, num_bytes: int) -> Tensor:
        """Host memory, uint8 [num_bytes], that copies need not wait for. May be dropped while a
        copy uses it."""
        ...

    def record(self) -> StepEvent:
        """The point that the engine's stream has reached."""
        ...

    def capture(self, step: Step) -> Step:
        """Does `step` once, and returns what does it again, over the same buffers, at the cost
        of one launch. All captures share their scratch memory: replay one at a time, and take
        results out before the next."""
        ...

    def free_bytes(self) -> int:
        """What may still be allocated, memory kept for reuse included. Others' allocations on
        the same device change it at any time."""
        ...

    def held_bytes(self) -> int:
        """What this process has allocated, memory kept for reuse not included."""
        ...

    def peak_bytes(self, step: Step) -> int:
        """Does `step`; the most memory it had at a time beyond what there was before."""
        ...
