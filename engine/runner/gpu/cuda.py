"""An NVIDIA GPU as an engine uses it: one stream, pinned memory, CUDA graphs.

Implements `engine.runner.gpu.device.Device`; nothing else of the engine asks which device it has.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.limits import DeviceSize
from engine.runner.contract import StepHung
from engine.runner.gpu.device import Step

HIGH_PRIORITY = -1
"""As CUDA counts: 0 is the usual one."""
DEPTH = 2
"""One step computes while the host reads the last one's tokens and decides the next."""


@dataclass(frozen=True, slots=True)
class CudaStepEvent:
    event: torch.cuda.Event

    def wait(self) -> None:
        wait_until(self.event.query)


class CudaDevice:
    def __init__(self, index: int, *, depth: int = DEPTH) -> None:
        """Device `index` of those visible."""
        self.index, self.depth = index, depth
        self.where = torch.device("cuda", index)
        chip = torch.cuda.get_device_properties(index)
        self.name, self.key = f"{self.where} {chip.name}", f"gpu {chip.uuid}"
        self.size = DeviceSize(
            memory_bytes=chip.total_memory, num_multiprocessors=chip.multi_processor_count
        )
        # A stream of our own: the default one cannot be captured, and would wait for, and be
        # waited for by, whoever else uses it. Of the high priority: torch deals its streams out
        # of a pool of 32 for each priority, round and round, so that another user of the usual
        # pool would get this one; and blocks of steps go before those of copies.
        self._stream = torch.cuda.Stream(device=index, priority=HIGH_PRIORITY)  # type: ignore[no-untyped-call]
        self._graph_pool = torch.cuda.graph_pool_handle()

    def bind(self) -> None:
        """Also for who marks what is written: `CudaDriver.mark` records on the calling thread's
        current stream, which must be the one that the KV was written on."""
        torch.cuda.set_device(self.index)
        torch.cuda.set_stream(self._stream)

    def host_bytes(self, num_bytes: int) -> Tensor:
        """Pinned; torch's allocator keeps it from reuse until the copies that use it are done."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def record(self) -> CudaStepEvent:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return CudaStepEvent(self._stream.record_event(event))

    def capture(self, step: Step) -> Step:
        """Done twice first: kernels are compiled and libraries make their workspaces in the first
        run, which a capture forbids, and the second shows that the first left nothing to do."""
        self.bind()
        step()
        step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are held to the rules of capture: others may be asking for
        # their events.
        with torch.cuda.graph(
            graph, pool=self._graph_pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            step()
        graph.replay()
        return graph.replay

    def free_bytes(self) -> int:
        self._give_back()
        free_bytes, _ = torch.cuda.mem_get_info(self.index)
        return int(free_bytes)

    def held_bytes(self) -> int:
        """As torch's allocator counts: captured steps' scratch memory is among it, the driver's
        own records of them (some MB) are not."""
        self._give_back()
        return int(torch.cuda.memory_reserved(self.index))

    def peak_bytes(self, step: Step) -> int:
        """What torch's allocator took from the device, the gaps it leaves included."""
        self.bind()
        before_bytes = self.held_bytes()
        torch.cuda.reset_peak_memory_stats(self.index)
        step()
        self._stream.synchronize()
        return int(torch.cuda.max_memory_reserved(self.index)) - before_bytes

    def _give_back(self) -> None:
        """What torch's allocator keeps for reuse."""
        self._stream.synchronize()
        torch.cuda.empty_cache()


STEP_PATIENCE_S = 60.0
"""Far more than a step takes; kernels are compiled before it is on its way."""
FIRST_PAUSE_S = 20e-6
LAST_PAUSE_S = 1e-3
LATE = 50
"""Asks again after a 50th of what was waited, between the two: 2 % late, and few wake-ups."""


def wait_until(happened: Callable[[], bool], *, patience_s: float = STEP_PATIENCE_S) -> None:
    """Raises StepHung when that has not happened within `patience_s`, and what `happened` raises.
    Sleeps, so other threads run."""
    began = time.monotonic()
    while not happened():
        waited_s = time.monotonic() - began
        if waited_s > patience_s:
            raise StepHung(f"the device has not ended its step in {patience_s:g} s")
        time.sleep(min(max(FIRST_PAUSE_S, waited_s / LATE), LAST_PAUSE_S))
