"""What a worker tells its routers without being asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import cast

import msgspec
import pytest
from support.link_words import words_of
from support.words import beat, prefill, registration

from protocol.channel.link import WorkerLink
from protocol.channel.port import RouterPort
from protocol.ids import RequestId, RouterId
from protocol.membership import Membership
from protocol.messages import Beat, Blocks, Decode, Failed, LoadReport, Prefill, WorkerState
from protocol.process.metrics import WorkerMetrics
from protocol.process.run import Shutdown
from protocol.store.workers import RouterRecord
from protocol.text.packed_text import PackedText
from worker import lifecycle
from worker.lifecycle import Lifecycle
from worker.service import EngineService


class FakeService:
    """Nothing but counts that a test sets."""

    def __init__(self) -> None:
        self.num_free, self.num_running = 8, 0

    def beat(self, state: WorkerState) -> Beat:
        blocks = Blocks(total=8, free=self.num_free, cached=0, leased=0)
        return msgspec.structs.replace(beat(running=self.num_running), state=state, blocks=blocks)

    def is_idle(self) -> bool:
        return True

    def engine_turn_s(self) -> float:
        return 0.0

    def accept_request(self, router: RouterId, message: Prefill | Decode) -> None:
        self.num_running = 1

    def refuse_request(self, router: RouterId, message: Prefill | Decode, why: Failed) -> None: ...
    def abort_request(self, router: RouterId, request: RequestId, attempt: int) -> None: ...
    def forget_router(self, router: RouterId) -> None: ...
    def expire_requests(self, now: float) -> None: ...
    def end_all_requests(self, why: str) -> None: ...


class FakeMembership:
    store_is_up, num_dropped_events = True, 0

    async def run(self, registration: object, beat: object) -> None: ...
    async def leave(self) -> None: ...

    async def list_routers(self) -> tuple[RouterRecord, ...]:
        return ()


async def heard(link: WorkerLink, *, num_free: int, num_running: int) -> None:
    """Until it is said. The beat that greets a router may come twice."""
    async with aclosing(words_of(link)) as words:
        async for word in words:
            match word:
                case Beat(blocks=blocks, load=load):
                    said = (blocks.free + blocks.cached, load.running)
                case LoadReport(num_free_blocks=room, running=running):
                    said = (room, running)
                case _:
                    continue
            if said == (num_free, num_running):
                return


@asynccontextmanager
async def serving(service: FakeService) -> AsyncIterator[str]:
    """A worker without beats but the first; where it listens."""
    port, shutdown = RouterPort(), Shutdown()
    here = registration(address=f"tcp://127.0.0.1:{port.port}")
    worker = Lifecycle(
        cast(EngineService, service),
        port=port,
        text=PackedText("text", b"archive"),
        membership=cast(Membership, FakeMembership()),
        metrics=WorkerMetrics(),
        shutdown=shutdown,
        drain_s=0.0,
    )
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(here), name="lifecycle")
        yield here.address
        shutdown.ask("the test is over")


@pytest.fixture(autouse=True)
def _no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "BEAT_S", 1e6)


def test_blocks_that_come_back_are_told_before_the_next_beat_is_due() -> None:
    async def test() -> None:
        service = FakeService()
        service.num_free, service.num_running = 3, 2
        async with (
            serving(service) as address,
            WorkerLink(address=address, router=RouterId("r")) as link,
        ):
            await heard(link, num_free=3, num_running=2)
            service.num_free = 8
            await heard(link, num_free=8, num_running=2)
            service.num_running = 0
            await heard(link, num_free=8, num_running=0)

    asyncio.run(test())


def test_what_one_router_asks_for_another_hears_soon() -> None:
    """And how many of its own are counted in that."""

    async def report_of(link: WorkerLink) -> LoadReport:
        async with aclosing(words_of(link)) as words:
            async for word in words:
                if isinstance(word, LoadReport) and word.running == 1:
                    return word
        raise AssertionError("unreachable")

    async def test() -> None:
        service = FakeService()
        async with (
            serving(service) as address,
            WorkerLink(address=address, router=RouterId("a")) as asking,
            WorkerLink(address=address, router=RouterId("b")) as other,
        ):
            await heard(other, num_free=8, num_running=0)
            asking.send_now(prefill())
            report = await report_of(other)
            assert report.num_received == 0
            other.send_now(prefill("r2"))
            assert (await report_of(asking)).num_received == 1

    asyncio.run(test())
