"""Work off the event loop, first come first served: several small pieces a turn.

A burst of arrivals costs one hand-over a turn and not one each, and the first of them are on their
way before the last are begun.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

MAX_PIECES = 8
MAX_BYTES = 32 << 10
"""Of one turn: some 8 ms of tokenising, which the first of it waits for the last."""
Args = TypeVarTuple("Args")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Piece:
    work: Callable[[], Any]
    num_bytes: int
    done: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def do_work(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:  # not handled here: raised again where it is awaited
            self.error = error

    def tell_result(self) -> None:
        if self.done.done():
            return
        if self.error is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(self.error)


class Threads:
    """At most `num` threads, named `name`, begun when there is work for them."""

    def __init__(self, num: int, *, name: str) -> None:
        self._num = num
        self._pool = ThreadPoolExecutor(num, thread_name_prefix=name)
        self._waiting: deque[_Piece] = deque()
        self._num_working = 0
        self._lock = threading.Lock()
        """Of the number of threads, so that none ends while a piece counts on it."""

    async def run(self, work: Callable[[*Args], T], *args: *Args, num_bytes: int = 0) -> T:
        """`work(*args)`, which is about so many bytes' worth. Cancelling drops the result; a begun
        call runs to its end."""
        done = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(_Piece(partial(work, *args), num_bytes, done))
            if self._num_working < self._num:
                self._num_working += 1
                self._pool.submit(self._work)
        result: T = await done
        return result

    def shutdown(self) -> None:
        """Drops what waits; does not wait for what has begun."""
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        """In a thread, until nothing waits."""
        while turn := self._take_turn():
            for piece in turn:
                piece.do_work()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                turn[-1].done.get_loop().call_soon_threadsafe(_tell_all, turn)

    def _take_turn(self) -> list[_Piece]:
        """Empty: this thread is none any more."""
        turn: list[_Piece] = []
        num_bytes = 0
        with self._lock:
            while self._waiting and len(turn) < MAX_PIECES and num_bytes < MAX_BYTES:
                piece = self._waiting.popleft()
                if not piece.done.cancelled():
                    turn.append(piece)
                    num_bytes += piece.num_bytes
            self._num_working -= not turn
        return turn


def _tell_all(turn: list[_Piece]) -> None:
    for piece in turn:
        piece.tell_result()
