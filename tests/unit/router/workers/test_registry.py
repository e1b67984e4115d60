"""The registry against fake workers over real sockets on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import pytest
from msgspec import structs
from support.eventually import soon
from support.fake_cluster import fake_cluster
from support.fake_worker import FakeWorker
from support.words import beat, registration

from protocol.codec import WIRE_VERSION
from protocol.errors import PeerLost, WireError
from protocol.ids import Epoch, RequestId, RouterId, WorkerId
from protocol.membership import Roster
from protocol.messages import Abort, Beat, Emit, Registration, Step, ToRouter, ToWorker
from router.workers.registry import MAX_RETRY_S, Registry
from router.workers.worker import KnownWorker
from router.workers.worker_messages import WorkerGone, WorkerMessage

ABORT = Abort(request=RequestId("r"), attempt=1, reason="test")


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


class Heard:
    """Keeps what is said of one request."""

    def __init__(self) -> None:
        self.messages: list[WorkerMessage] = []

    def accept_emit(self, emit: Emit, worker: WorkerId, epoch: Epoch, now: float) -> None:
        self.messages.append(WorkerMessage(worker, epoch, emit))

    def accept_message(self, message: WorkerMessage, *, now: float) -> None:
        self.messages.append(message)

    async def first(self) -> WorkerMessage:
        await soon(lambda: bool(self.messages))
        return self.messages[0]


def test_a_worker_is_ready_once_it_has_said_so() -> None:
    async def test() -> None:
        async with fake_cluster() as cluster:
            assert cluster.registry.not_ready() == "no decode worker"
            worker = FakeWorker("decode-0", "decode", cluster.fabric, state="draining")
            cluster.add(worker)
            await soon(lambda: cluster.registry.not_ready() == "no decode worker; decode: draining")
            worker.state = "ready"
            worker.say()
            await soon(lambda: cluster.registry.not_ready() is None)

    run(test)


def test_a_prefill_worker_alone_is_not_ready() -> None:
    async def test() -> None:
        async with fake_cluster(prefill=1) as cluster:
            assert cluster.registry.not_ready() == "no decode worker"

    run(test)


def test_a_lost_worker_is_removed_and_open_requests_are_told_at_once() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            worker, heard = cluster.workers["decode-0"], Heard()
            cluster.registry.add_receiver(RequestId("r"), heard)
            worker.die()
            received = await heard.first()
            assert (received.worker, received.epoch) == (worker.id, worker.epoch)
            assert isinstance(received.message, WorkerGone)
            assert cluster.registry.workers == []
            assert not cluster.registry.post_message(worker.id, worker.epoch, ABORT)

    run(test)


def test_a_worker_that_leaves_redis_stays_while_its_link_lives() -> None:
    async def test() -> None:
        async with fake_cluster(decode=2) as cluster:
            gone_from_redis = cluster.workers.pop("decode-0")
            cluster.announce()
            await cluster.until_ready()
            gone_from_redis.say()
            assert len(cluster.registry.ready_workers()) == 2
            cluster.workers["decode-0"] = gone_from_redis

    run(test)


def test_a_new_incarnation_replaces_the_old_one_even_if_its_link_still_lives() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            old, heard = cluster.workers["decode-0"], Heard()
            cluster.registry.add_receiver(RequestId("r"), heard)
            new = cluster.add(FakeWorker("decode-0", "decode", cluster.fabric))
            received = await heard.first()
            assert received == WorkerMessage(
                old.id, old.epoch, WorkerGone("was replaced by a new incarnation")
            )
            await soon(lambda: [w.epoch for w in cluster.registry.ready_workers()] == [new.epoch])
            assert not cluster.registry.post_message(old.id, old.epoch, ABORT)
            assert cluster.registry.post_message(new.id, new.epoch, ABORT)

    run(test)


def test_a_worker_that_cannot_be_reached_says_why_until_it_is_reached_or_not_registered() -> None:
    async def test() -> None:
        now, here, tries = [0.0], [registration("decode-0")], []
        reachable: list[bool] = []

        @asynccontextmanager
        async def connect(wanted: Registration) -> AsyncIterator["SilentLink"]:
            tries.append(wanted)
            if not reachable:
                raise PeerLost("worker at tcp://x:1: no socket for its link: Too many open files")
            yield SilentLink(wanted)

        async def rosters() -> AsyncIterator[Roster]:
            while True:
                yield Roster(workers=tuple(here))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            registry = Registry(connect=connect, clock=lambda: now[0])
            running = tasks.create_task(registry.run(rosters()), name="registry")
            await soon(lambda: "Too many open files" in (registry.not_ready() or ""))
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(tries) == 1, "not before a pause"
            now[0] = MAX_RETRY_S
            await soon(lambda: len(tries) == 2)
            assert [w.state for w in registry.workers] == ["connecting"]
            here.clear()
            await soon(lambda: not registry.workers)
            here.append(registration("decode-0", epoch=2))
            reachable.append(True)
            await soon(lambda: [w.connection is not None for w in registry.workers] == [True])
            running.cancel()

    run(test)


def test_a_worker_whose_words_make_us_fail_loses_its_link_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with fake_cluster(decode=2) as cluster:
            note_beat = KnownWorker.note_beat

            def fail(worker: KnownWorker, beat: Beat, *, now: float) -> None:
                if worker.id == "decode-0":
                    raise OverflowError("int too large to convert to float")
                note_beat(worker, beat, now=now)

            monkeypatch.setattr(KnownWorker, "note_beat", fail)
            await soon(lambda: [w.id for w in cluster.registry.ready_workers()] == ["decode-1"])

    run(test)


def test_nobody_at_a_registered_address_is_tried_again_with_the_next_membership() -> None:
    async def test() -> None:
        attempts: list[Epoch] = []

        @asynccontextmanager
        async def connect(wanted: Registration) -> AsyncIterator["SilentLink"]:
            attempts.append(wanted.epoch)
            link = SilentLink(wanted)
            if len(attempts) == 1:
                link.registration = registration("decode-0", epoch=99)
            yield link

        async with asyncio.TaskGroup() as tasks:
            registry = Registry(connect=connect)
            running = tasks.create_task(registry.run(often()), name="registry")
            await soon(lambda: len(attempts) == 2)
            running.cancel()

    run(test)


def test_another_protocol_version_is_kept_unused_and_readiness_says_why() -> None:
    async def test() -> None:
        @asynccontextmanager
        async def connect(_: Registration) -> AsyncIterator["SilentLink"]:
            raise WireError("worker decode-0 speaks version 2, this router 1")
            yield

        async with asyncio.TaskGroup() as tasks:
            registry = Registry(connect=connect)
            running = tasks.create_task(registry.run(often()), name="registry")
            await soon(
                lambda: (registry.not_ready() or "").endswith("speaks version 2, this router 1")
            )
            assert registry.ready_workers() == []
            running.cancel()

    run(test)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"wire": 7, "text": ""}, "it speaks wire 7, which tells no text"),
        ({"wire": WIRE_VERSION + 1}, f"it speaks wire {WIRE_VERSION + 1}, this router 8 and 7"),
    ],
)
def test_a_worker_that_is_not_understood_is_kept_unused_and_readiness_says_why(
    changes: dict[str, Any], why: str
) -> None:
    async def memberships() -> AsyncIterator[Roster]:
        yield Roster(workers=(structs.replace(registration(), **changes),))
        await asyncio.Event().wait()

    async def test() -> None:
        async with asyncio.TaskGroup() as tasks:
            registry = Registry(connect=never)
            running = tasks.create_task(registry.run(memberships()), name="registry")
            await soon(lambda: registry.not_ready() == f"no decode worker; decode: {why}")
            running.cancel()

    run(test)


@asynccontextmanager
async def never(_: Registration) -> AsyncIterator["SilentLink"]:
    raise AssertionError("nobody connects to it")
    yield


async def often() -> AsyncIterator[Roster]:
    while True:
        yield Roster(workers=(registration("decode-0", epoch=1),))
        await asyncio.sleep(0)


class SilentLink:
    """Shakes hands and says one beat."""

    def __init__(self, wanted: Registration) -> None:
        self.registration = wanted

    async def hear(
        self,
        accept: Callable[[ToRouter], None],
        *,
        take_frame: Callable[[bytes], bool] | None = None,
    ) -> NoReturn:
        accept(beat(epoch=self.registration.epoch))
        await asyncio.Event().wait()
        raise AssertionError

    def send_now(self, message: ToWorker) -> None:
        raise AssertionError(message)


def test_a_token_that_no_tokenizer_can_be_asked_about_costs_the_worker_its_link() -> None:
    async def test() -> None:
        async with fake_cluster(decode=1) as cluster:
            worker, heard = cluster.workers["decode-0"], Heard()
            cluster.registry.add_receiver(RequestId("r"), heard)
            emit = Emit(
                request=RequestId("r"), attempt=1, index=0, token_id=1 << 32, text="", logprob=None,
                top=(),
            )  # fmt: skip
            worker.send(RouterId("router"), Step(emits=(emit,)))
            received = await heard.first()
            assert isinstance(received.message, WorkerGone)
            assert "malformed" in received.message.reason

    run(test)
