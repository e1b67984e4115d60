"""Real sockets on loopback."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
import zmq
import zmq.asyncio
from support.eventually import soon
from support.link_words import words_of
from support.words import beat, prefill, registration

from protocol.channel.link import WorkerLink
from protocol.channel.port import RouterGone, RouterJoined, RouterMessage, RouterPort
from protocol.channel.wire import QUEUE_MESSAGES
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.errors import PeerLost, SettingsError, WireError
from protocol.ids import RequestId, RouterId
from protocol.messages import Abort, Aborted, Beat, Hello, ToRouter, Welcome

ROUTER = RouterId("router-1")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


@asynccontextmanager
async def serving(
    *, silent_after_s: float = 3.0, max_unheard: int = QUEUE_MESSAGES
) -> AsyncIterator[RouterPort]:
    port = RouterPort(silent_after_s=silent_after_s, max_unheard=max_unheard)
    async with port.serve(registration(address=f"tcp://127.0.0.1:{port.port}")):
        yield port


def link_to(
    port: RouterPort,
    *,
    router: RouterId = ROUTER,
    silent_after_s: float = 3.0,
    num_links: Callable[[], int] = lambda: 1,
) -> WorkerLink:
    address = f"tcp://127.0.0.1:{port.port}"
    return WorkerLink(
        address=address, router=router, silent_after_s=silent_after_s, num_links=num_links
    )


async def first(link: WorkerLink, kind: type[ToRouter]) -> ToRouter:
    async with aclosing(words_of(link)) as words:
        async for message in words:
            if isinstance(message, kind):
                return message
    raise AssertionError("unreachable")


def test_a_link_learns_who_the_worker_is_and_carries_messages_both_ways() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port) as link:
            assert link.registration.worker == "decode-0"
            assert await port.receive() == RouterJoined(ROUTER)

            link.send_now(prefill("r1"))
            assert await port.receive() == RouterMessage(ROUTER, prefill("r1"))

            aborted = Aborted(request=RequestId("r1"), attempt=0)
            port.send(ROUTER, aborted)
            assert await first(link, Aborted) == aborted

    run(test)


def test_messages_from_another_thread_arrive_in_the_order_they_were_sent() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port) as link:

            def talk() -> None:
                for number in range(2000):
                    port.send(ROUTER, Aborted(request=RequestId("r"), attempt=number))

            thread = threading.Thread(target=talk)
            thread.start()
            attempts = []
            async with aclosing(words_of(link)) as words:
                async for message in words:
                    assert isinstance(message, Aborted)
                    attempts.append(message.attempt)
                    if len(attempts) == 2000:
                        break
            thread.join()

            assert attempts == list(range(2000))

    run(test)


def test_a_router_sees_each_beat() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port) as link:
            port.broadcast(lambda _: beat(running=3))
            assert await first(link, Beat) == beat(running=3)

    run(test)


def test_computations_are_counted_for_each_link_that_asks_for_them() -> None:
    async def test() -> None:
        async with serving() as port:
            async with link_to(port) as link:
                for number in range(3):
                    link.send_now(prefill(f"r{number}"))
                link.send_now(Abort(request=RequestId("r0"), attempt=0, reason=""))
                for _ in range(5):
                    await port.receive()
                assert port.num_received(ROUTER) == 3
            assert isinstance(await port.receive(), RouterGone)
            async with link_to(port) as link:
                assert await port.receive() == RouterJoined(ROUTER)
                assert port.num_received(ROUTER) == 0

    run(test)


def test_a_router_that_was_silent_goes_on_counting_where_it_was() -> None:
    """Its link is the same, and so are the numbers that it gives to what it sends."""

    async def test() -> None:
        async with serving(silent_after_s=0.3) as port, raw_peer(port, ROUTER.encode()) as socket:
            await socket.send(to_worker.encode(Hello(router=ROUTER, version=WIRE_VERSION)))
            await socket.send(to_worker.encode(prefill()))
            assert await port.receive() == RouterJoined(ROUTER)
            assert await port.receive() == RouterMessage(ROUTER, prefill())
            assert isinstance(await port.receive(), RouterGone)

            await socket.send(to_worker.encode(prefill("r2")))
            assert await port.receive() == RouterJoined(ROUTER)
            assert await port.receive() == RouterMessage(ROUTER, prefill("r2"))
            assert port.num_received(ROUTER) == 2

    run(test)


def test_a_router_says_how_many_workers_it_hears() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port, num_links=lambda: 64):
            await soon(lambda: port.num_workers(ROUTER) == 64)

    run(test)


def test_a_worker_that_dies_is_noticed_by_its_closed_connection() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port, silent_after_s=600) as link:
            port.close()
            with pytest.raises(PeerLost, match="disconnected"):
                await first(link, Beat)
            with pytest.raises(PeerLost):
                link.send_now(prefill())

    run(test)


def test_a_worker_that_stays_silent_is_lost() -> None:
    async def test() -> None:
        async with serving() as port, link_to(port, silent_after_s=0.3) as link:
            with pytest.raises(PeerLost, match="silent"):
                await first(link, Beat)

    run(test)


def test_a_link_to_nobody_is_refused() -> None:
    async def test() -> None:
        port = RouterPort()
        port.close()
        with pytest.raises(PeerLost):
            async with link_to(port):
                pass

    run(test)


def test_a_worker_of_another_version_is_refused_and_named() -> None:
    async def test() -> None:
        socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        async def other_version() -> None:
            identity, _ = await socket.recv_multipart()
            welcome = Welcome(registration=registration(), version=WIRE_VERSION + 1)
            await socket.send_multipart([identity, to_router.encode(welcome)])

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(other_version(), name="other-version")
                with pytest.raises(WireError, match=f"version {WIRE_VERSION + 1}"):
                    async with WorkerLink(address=f"tcp://127.0.0.1:{port}", router=ROUTER):
                        pass
        finally:
            socket.close(linger=0)

    run(test)


def test_words_meant_for_an_older_link_may_come_before_the_welcome() -> None:
    async def test() -> None:
        socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        async def late() -> None:
            identity, _ = await socket.recv_multipart()
            welcome = Welcome(registration=registration(), version=WIRE_VERSION)
            aborted = Aborted(request=RequestId("old"), attempt=0)
            for message in (beat(), aborted, welcome, beat(running=3)):
                await socket.send_multipart([identity, to_router.encode(message)])

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(late(), name="late")
                link = WorkerLink(address=f"tcp://127.0.0.1:{port}", router=ROUTER)
                async with link:
                    assert link.registration == registration()
                    assert await first(link, Beat) == beat(running=3)
        finally:
            socket.close(linger=0)

    run(test)


@asynccontextmanager
async def raw_peer(port: RouterPort, identity: bytes) -> AsyncIterator[zmq.asyncio.Socket]:
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(f"tcp://127.0.0.1:{port.port}")
    try:
        yield socket
    finally:
        socket.close(linger=0)


def test_a_router_of_another_version_is_told_ours_and_gets_nothing_else() -> None:
    async def test() -> None:
        async with serving() as port, raw_peer(port, b"old") as socket:
            await socket.send(to_worker.encode(Hello(router=RouterId("old"), version=0)))
            welcome = to_router.decode(await socket.recv())
            assert isinstance(welcome, Welcome) and welcome.version == WIRE_VERSION

            await socket.send(to_worker.encode(prefill()))
            await soon(lambda: port.refused_frames == 2)
            assert port.routers == ()

    run(test)


@pytest.mark.parametrize("frames", [[b"\xc1"], [b""], [b"a", b"b"], [b"\x93" * 50]])
def test_a_malformed_frame_is_dropped_and_the_others_are_served(frames: list[bytes]) -> None:
    async def test() -> None:
        async with serving() as port, raw_peer(port, b"\xff\xfe") as socket:
            await socket.send_multipart(frames)
            await soon(lambda: port.refused_frames == 1)
            async with link_to(port) as link:
                link.send_now(prefill())
                assert await port.receive() == RouterJoined(ROUTER)
                assert await port.receive() == RouterMessage(ROUTER, prefill())

    run(test)


def test_a_router_that_stays_silent_is_gone_and_is_back_with_its_next_word() -> None:
    async def test() -> None:
        async with serving(silent_after_s=0.3) as port, raw_peer(port, ROUTER.encode()) as socket:
            await socket.send(to_worker.encode(Hello(router=ROUTER, version=WIRE_VERSION)))
            assert await port.receive() == RouterJoined(ROUTER)
            assert isinstance(await port.receive(), RouterGone)

            await socket.send(to_worker.encode(prefill()))
            assert await port.receive() == RouterJoined(ROUTER)
            assert await port.receive() == RouterMessage(ROUTER, prefill())

    run(test)


def test_a_new_link_of_a_router_voids_its_old_one() -> None:
    async def test() -> None:
        async with serving() as port, raw_peer(port, ROUTER.encode()) as socket:
            hello = to_worker.encode(Hello(router=ROUTER, version=WIRE_VERSION))
            await socket.send(hello)
            await socket.send(hello)
            assert await port.receive() == RouterJoined(ROUTER)
            assert isinstance(await port.receive(), RouterGone)
            assert await port.receive() == RouterJoined(ROUTER)

    run(test)


def test_a_router_that_joins_over_and_over_waits_until_it_was_heard() -> None:
    async def test() -> None:
        async with serving(max_unheard=3) as port, raw_peer(port, ROUTER.encode()) as socket:
            hello = to_worker.encode(Hello(router=ROUTER, version=WIRE_VERSION))
            for _ in range(50):
                await socket.send(hello)
            await soon(lambda: port.num_unheard >= 5)
            await asyncio.wait_for(_first_goodbye(port), 5)
            assert port.num_unheard <= 6

    run(test)


async def _first_goodbye(port: RouterPort) -> None:
    while not isinstance(await port.receive(), RouterGone):
        continue


def test_sending_to_a_router_whose_connection_is_closed_reports_it_gone() -> None:
    async def test() -> None:
        async with serving(silent_after_s=600) as port:
            async with link_to(port):
                assert await port.receive() == RouterJoined(ROUTER)

            def noticed() -> bool:
                port.send(ROUTER, beat())
                return port.routers == ()

            await soon(noticed)
            assert isinstance(await port.receive(), RouterGone)

    run(test)


def test_a_router_that_missed_a_message_must_open_a_new_link() -> None:
    async def test() -> None:
        async with serving(silent_after_s=600) as port, link_to(port, silent_after_s=600) as link:
            assert await port.receive() == RouterJoined(ROUTER)
            for number in range(QUEUE_MESSAGES + 1):
                port.send(ROUTER, Aborted(request=RequestId("r"), attempt=number))
            assert isinstance(await port.receive(), RouterGone)

            link.send_now(prefill())
            await soon(lambda: port.refused_frames > 0)
            assert port.routers == ()

            async with link_to(port):
                assert await port.receive() == RouterJoined(ROUTER)

    run(test)


def test_a_taken_port_is_a_settings_error() -> None:
    port = RouterPort()
    try:
        with pytest.raises(SettingsError, match=f"port: cannot listen on 127.0.0.1:{port.port}"):
            RouterPort(port=port.port)
    finally:
        port.close()
