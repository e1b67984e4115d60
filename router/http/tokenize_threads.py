"""Threads that parse, render and tokenise, so that the event loop does not wait for them.

A 32k-token prompt is about 70 ms of one core (docs: field notes on tokenising); on the loop it
would delay every stream. `tokenizers` leaves the interpreter lock while it encodes. The queue
is bounded by `router.http.admission`: nobody comes here without a seat.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

Args = TypeVarTuple("Args")
T = TypeVar("T")


class TokenizeThreads:
    """Close it when the app ends."""

    def __init__(self, *, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """`work(*args)` in a thread. Cancelling drops the result; a begun call runs to its end."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, work, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
