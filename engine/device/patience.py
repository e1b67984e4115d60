"""Waits for a device, but not for ever: a GPU that hangs answers neither yes nor no.

Used by `engine.device.cuda`.
"""

import time
from collections.abc import Callable

from engine.runner import StepHung

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
