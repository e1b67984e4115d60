"""How long the parts of a worker's start take, and that it goes on.

Entered one after the other, some more than once; from any thread.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from protocol.process.metrics import WorkerMetrics

Phase = Literal["modules", "fetch", "load", "kernels", "warm"]
PHASES: Final[tuple[Phase, ...]] = ("modules", "fetch", "load", "kernels", "warm")
"""Python's modules; the model looked for, and downloaded where `--model` is a name; its weights
read; kernels for CPUs loaded, or built first; steps tried, on a GPU with what compiles for them,
and graphs captured."""
log = logging.getLogger(__name__)


class StartPhases:
    """Of one start: to its metrics, to its log, and to `/health`, which a hung start fails."""

    def __init__(
        self, metrics: WorkerMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._took_s: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase | None = None
        self._since_s = clock()

    def enter(self, phase: Phase) -> None:
        """The phase before it has ended."""
        with self._lock:
            self._end_phase()
            self._phase = phase
        self._metrics.health.note_progress(phase)

    def note_bytes(self, done: int, total: int) -> None:
        """Of the weights so many are there."""
        self._metrics.health.note_progress(f"weights, {done} of {total} bytes")

    def end(self) -> None:
        """The worker serves."""
        with self._lock:
            self._end_phase()
            self._phase = None
            took = {f"{phase}_s": round(took_s, 3) for phase, took_s in self._took_s.items()}
        log.info("started", extra=took)

    def _end_phase(self) -> None:
        now_s = self._clock()
        if self._phase is not None:
            self._took_s[self._phase] += now_s - self._since_s
            self._metrics.start_s.labels(self._phase).set(self._took_s[self._phase])
        self._since_s = now_s
