"""Waiting by polling, for libraries that can be waited for in no other way."""

import os
import time
from collections.abc import Callable
from typing import Final

_WITHIN_S: Final = 30.0


def poll(done: Callable[[], bool]) -> None:
    """Until `done`, giving the core away between two looks: on two cores a tight loop takes the
    core that the other end needs. Raises TimeoutError after 30 s."""
    until_s = time.monotonic() + _WITHIN_S
    while not done():
        if time.monotonic() > until_s:
            raise TimeoutError(f"nothing came within {_WITHIN_S:.0f} s")
        os.sched_yield()
