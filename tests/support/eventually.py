"""Waits for a condition by looking, never by sleeping a guessed time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

POLL_S = 0.01
WITHIN_S = 30.0  # what takes a moment, on a machine busy with other tests
START_S = 200.0  # importing torch takes 2 s, and over 60 there
T = TypeVar("T")


def eventually(condition: Callable[[], T], within_s: float = WITHIN_S, what: str = "") -> T:
    """The first true value of `condition`; AssertionError with its last one after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'condition'} still {value!r} after {within_s} s")
        time.sleep(POLL_S)


async def soon(
    condition: Callable[[], bool | Awaitable[bool]], within_s: float = WITHIN_S, what: str = ""
) -> None:
    """`eventually` for a running event loop; the condition may be awaitable."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'condition'} still false after {within_s} s")
        await asyncio.sleep(POLL_S)
