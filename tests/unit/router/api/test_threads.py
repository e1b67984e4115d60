"""Work in threads: in order, several pieces a turn, and nobody's mistake is another's."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from router.api.threads import LARGE_BYTES, MAX_BYTES, MAX_PIECES, Threads

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(1, name="work", num_cores=1)
    yield made
    made.shutdown()


class Gate:
    """Keeps a thread until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def work(self) -> None:
        self.entered.set()
        assert self.opened.wait(10)


class _Counted:
    """How many threads are at this work at once, at most."""

    def __init__(self) -> None:
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def work(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        threading.Event().wait(0.001)
        with self._lock:
            self._now -= 1


async def test_what_work_returns_and_raises_is_its_own(threads: Threads) -> None:
    def fail() -> None:
        raise ValueError("mine")

    good, bad, later = await asyncio.gather(
        threads.run(max, 1, 2), threads.run(fail), threads.run(min, 1, 2), return_exceptions=True
    )
    assert (good, later) == (2, 1)
    assert isinstance(bad, ValueError)


async def test_first_come_is_first_served_and_told_before_the_last_is_begun(
    threads: Threads,
) -> None:
    gate, begun, told = Gate(), list[int](), list[int]()
    last = 3 * MAX_PIECES

    def work(number: int) -> list[int]:
        begun.append(number)
        if number == last:
            gate.work()
        return list(begun)

    async def run(number: int) -> None:
        await threads.run(work, number)
        told.append(number)
        if number == MAX_PIECES - 1:
            gate.opened.set()  # the last waits for the first turn to be told

    async with asyncio.TaskGroup() as tasks:
        for number in range(last + 1):
            tasks.create_task(run(number), name=f"piece {number}")
    assert begun == told == list(range(last + 1))


async def test_a_large_piece_is_the_last_of_its_turn(threads: Threads) -> None:
    gate, told = Gate(), list[str]()

    async def run(name: str, num_bytes: int) -> None:
        await threads.run(gate.work if name == "third" else str, num_bytes=num_bytes)
        told.append(name)
        if name == "second":
            gate.opened.set()

    async with asyncio.TaskGroup() as tasks:
        for name, num_bytes in (("first", 1), ("second", MAX_BYTES), ("third", 1)):
            tasks.create_task(run(name, num_bytes), name=name)
    assert told == ["first", "second", "third"]


async def test_what_is_cancelled_before_its_turn_is_never_begun(threads: Threads) -> None:
    gate, begun = Gate(), list[str]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(threads.run(gate.work), name="gate")
        await asyncio.to_thread(gate.entered.wait, 10)
        cancelled = tasks.create_task(threads.run(begun.append, "cancelled"), name="cancelled")
        tasks.create_task(threads.run(begun.append, "kept"), name="kept")
        await asyncio.sleep(0)
        cancelled.cancel()
        gate.opened.set()
    assert begun == ["kept"]


async def test_a_thread_that_has_ended_is_begun_again_and_no_more_than_asked_for_run() -> None:
    threads = Threads(2, name="work", num_cores=2)
    at_once = _Counted()
    for _ in range(3):
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(
                    threads.run(at_once.work, num_bytes=MAX_BYTES), name=f"piece {number}"
                )
    threads.shutdown()
    assert 1 <= at_once.most <= 2


async def test_small_pieces_have_one_more_thread_only_while_another_is_at_a_large_one() -> None:
    threads = Threads(2, name="work", num_cores=1)
    gate, named = Gate(), set[str]()

    def name_thread() -> None:
        named.add(threading.current_thread().name)

    async def small_pieces(num: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(num):
                tasks.create_task(threads.run(name_thread, num_bytes=MAX_BYTES), name=f"{number}")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        large = threads.run(gate.work, num_bytes=LARGE_BYTES)
        tasks.create_task(large, name="large")
        await asyncio.to_thread(gate.entered.wait, 10)
        await small_pieces(20)
        assert len(named) == 1
        gate.opened.set()
    at_once = _Counted()
    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(threads.run(at_once.work, num_bytes=MAX_BYTES), name=f"{number}")
    threads.shutdown()
    assert at_once.most == 1


async def test_nobody_waits_in_the_turn_of_a_large_piece() -> None:
    threads, first, gate = Threads(1, name="work", num_cores=1), Gate(), Gate()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(threads.run(first.work), name="first")
        await asyncio.to_thread(first.entered.wait, 10)
        small = tasks.create_task(threads.run(max, 1, 2, num_bytes=1), name="small")
        tasks.create_task(threads.run(gate.work, num_bytes=LARGE_BYTES), name="large")
        await asyncio.sleep(0)
        first.opened.set()
        assert await small == 2
        gate.opened.set()
    threads.shutdown()
