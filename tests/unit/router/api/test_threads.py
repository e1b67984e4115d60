"""Work in threads: in order, several pieces a turn, and nobody's mistake is another's."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from router.api.threads import MAX_BYTES, MAX_PIECES, Threads

pytestmark = pytest.mark.anyio


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(1, name="work")
    yield made
    made.shutdown()


class Gate:
    """Keeps a thread until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def work(self) -> None:
        self.entered.set()
        assert self.opened.wait(10)


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
    threads = Threads(2, name="work")
    most, now, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.001)
        with lock:
            now[0] -= 1

    for _ in range(3):
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(threads.run(work, num_bytes=MAX_BYTES), name=f"piece {number}")
    threads.shutdown()
    assert 1 <= most[0] <= 2
