"""A child that lives and answers nothing is killed, and only that one."""

import asyncio
import sys
from collections.abc import Callable

import pytest
from support.eventually import soon

from controlplane.local.child import Child, ChildEvent, ChildHung, ChildSpec, ChildStarted
from controlplane.local.watch import http_answers, watch
from protocol.process.backoff import Backoff

SLEEPS = ChildSpec(name="stub", command=(sys.executable, "-c", "import time; time.sleep(600)"))


class Watched:
    """A real process, watched by answers that the test gives."""

    def __init__(self, answers: Callable[["Watched"], bool]) -> None:
        self.events: list[ChildEvent] = []
        self.child = Child(SLEEPS, on_event=self.events.append, backoff=Backoff(first_s=0.001))
        self.num_asked = 0
        self._answers = answers

    async def answers(self) -> bool:
        if self.child.pid is None:
            return False
        self.num_asked += 1
        return self._answers(self)

    @property
    def num_hung(self) -> int:
        return sum(isinstance(event, ChildHung) for event in self.events)

    @property
    def num_started(self) -> int:
        return sum(isinstance(event, ChildStarted) for event in self.events)

    async def run_until(self, done: Callable[["Watched"], bool]) -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.child.run(), name="child")
            tasks.create_task(
                watch(self.child, self.answers, hung_s=0.01, every_s=0.01), name="watch"
            )
            self.child.was_ready = True
            try:
                await soon(lambda: done(self), what="the end of the test", within_s=50)
            finally:
                self.child.kill()


def _first_answers(watched: Watched) -> bool:
    return watched.num_asked <= 3


def _never(_: Watched) -> bool:
    return False


def _always(_: Watched) -> bool:
    return True


def test_a_child_that_stops_answering_is_killed_and_started_again() -> None:
    watched = Watched(_first_answers)
    asyncio.run(watched.run_until(lambda one: one.num_started == 2))
    assert watched.num_hung == 1


def test_a_child_that_has_not_answered_yet_is_still_starting() -> None:
    watched = Watched(_never)
    asyncio.run(watched.run_until(lambda one: one.num_asked >= 4))
    assert (watched.num_hung, watched.num_started) == (0, 1)


def test_a_child_that_answers_is_left_alone() -> None:
    watched = Watched(_always)
    asyncio.run(watched.run_until(lambda one: one.num_asked >= 4))
    assert (watched.num_hung, watched.num_started) == (0, 1)


@pytest.mark.parametrize(
    ("said", "works", "lives"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", True, True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False, True),
        (b"", False, False),
    ],
)
def test_a_refusal_is_a_sign_of_life_but_not_of_work(said: bytes, works: bool, lives: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async def ask() -> tuple[bool, bool]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            worker = await http_answers(host, port)
            return worker, await http_answers(host, port, with_any=True)

    assert asyncio.run(ask()) == (works, lives)
