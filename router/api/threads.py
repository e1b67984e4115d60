"""Work off the event loop, first come first served: several small pieces a turn.

A burst of arrivals costs one hand-over a turn and not one each, and the first of them are on their
way before the last are begun. More threads than cores would take the processor's caches from each
other (docs/lab.md), so one more only serves small pieces while others are at a large one.
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
LARGE_BYTES = 256 << 10
"""About a millisecond of JSON, and 70 ms of tokenising."""
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
    """At most `num` threads, named `name`, begun when there is work for them; of them at most
    `num_cores` that are not at a large piece."""

    def __init__(self, num: int, *, name: str, num_cores: int) -> None:
        self._num = num
        self._num_cores = num_cores
        self._pool = ThreadPoolExecutor(num, thread_name_prefix=name)
        self._waiting: deque[_Piece] = deque()
        self._num_working = 0
        self._num_at_large = 0
        self._lock = threading.Lock()
        """Of the numbers of threads, so that none ends while a piece counts on it."""

    async def run(self, work: Callable[[*Args], T], *args: *Args, num_bytes: int = 0) -> T:
        """`work(*args)`, which is about so many bytes' worth. Cancelling drops the result; a begun
        call runs to its end."""
        done = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append(_Piece(partial(work, *args), num_bytes, done))
            self._begin_thread()
        result: T = await done
        return result

    def shutdown(self) -> None:
        """Drops what waits; does not wait for what has begun."""
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin_thread(self) -> None:
        """If what waits is to have one more. With the lock."""
        num_at_small = self._num_working - self._num_at_large
        if self._num_working < self._num and num_at_small < self._num_cores:
            self._num_working += 1
            self._pool.submit(self._work)

    def _work(self) -> None:
        """In a thread, until nothing waits, or others are enough."""
        is_large = False
        while turn := self._take_turn(was_large=is_large):
            is_large = _is_large(turn)
            for piece in turn:
                piece.do_work()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                turn[-1].done.get_loop().call_soon_threadsafe(_tell_all, turn)

    def _take_turn(self, *, was_large: bool) -> list[_Piece]:
        """Empty: this thread is none any more."""
        with self._lock:
            self._num_at_large -= was_large
            is_one_too_many = self._num_working - self._num_at_large > self._num_cores
            turn = [] if is_one_too_many else self._next_pieces()
            if _is_large(turn):
                self._num_at_large += 1
                if self._waiting:
                    self._begin_thread()
            self._num_working -= not turn
        return turn

    def _next_pieces(self) -> list[_Piece]:
        turn: list[_Piece] = []
        num_bytes = 0
        while self._waiting and len(turn) < MAX_PIECES and num_bytes < MAX_BYTES:
            if turn and self._waiting[0].num_bytes >= LARGE_BYTES:
                break  # nobody else waits for it
            piece = self._waiting.popleft()
            if not piece.done.cancelled():
                turn.append(piece)
                num_bytes += piece.num_bytes
        return turn


def _is_large(turn: list[_Piece]) -> bool:
    return bool(turn) and turn[0].num_bytes >= LARGE_BYTES


def _tell_all(turn: list[_Piece]) -> None:
    for piece in turn:
        piece.tell_result()
