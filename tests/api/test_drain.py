"""A router that ends: who is served meanwhile, and what those are told whom it leaves, in bytes."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from support.api import HI, MODEL, Bench
from support.eventually import soon
from support.raw_http import HEALTH, Answer, Raw, connected, post

from router.wire.limits import ConnectionLimits

pytestmark = pytest.mark.anyio
BODY = json.dumps({"model": MODEL, "messages": HI}).encode()
STREAM = json.dumps({"model": MODEL, "messages": HI, "stream": True}).encode()
LONG_S = 60.0
"""Longer than a test waits for anything."""


def post_to(path: bytes, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nanthropic-version: 2023-06-01\r\n" % path
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def answered(client: Raw, request: bytes) -> Answer:
    client.send(request)
    return await client.answer()


async def test_while_it_lingers_all_are_served_and_asked_to_connect_anew(bench: Bench) -> None:
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(
            bench.served(ConnectionLimits(last_idle_s=LONG_S))
        )
        kept = await stack.enter_async_context(connected(url))
        assert "connection" not in (await answered(kept, post(body=BODY))).headers
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.linger(LONG_S), name="linger")
            await soon(lambda: server.is_draining)
            late = await stack.enter_async_context(connected(url))
            for client in (kept, late):
                answer = await answered(client, post(body=BODY))
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert b"Hello there." in answer.body
                assert await client.ended()
            server.hurry()


async def test_silent_clients_are_let_go_when_a_request_on_its_way_would_have_come(
    bench: Bench,
) -> None:
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(
            bench.served(ConnectionLimits(last_idle_s=0.05))
        )
        kept = await stack.enter_async_context(connected(url))
        never_spoke = await stack.enter_async_context(connected(url))
        await answered(kept, HEALTH)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.linger(LONG_S), name="linger")
            assert await kept.ended() and await never_spoke.ended()
            server.hurry()


async def test_a_stream_goes_on_when_nobody_may_connect_any_more(bench: Bench) -> None:
    bench.dispatcher.hold_at = 1
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(
            bench.served(ConnectionLimits(last_idle_s=LONG_S), drain_s=LONG_S)
        )
        client = await stack.enter_async_context(connected(url))
        client.send(post(body=STREAM))
        await client.head()
        await server.linger(0.0)
        await soon(lambda: refused(url))
        bench.dispatcher.release.set()
        body = await client.body()
        assert b"there" in body and body.endswith(b"data: [DONE]\n\n")
        answer = await answered(client, post(body=BODY))  # it has not heard of the drain yet
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.ended()


async def refused(url: str) -> bool:
    try:
        async with connected(url):
            return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize(
    ("path", "extra", "last"),
    [
        (b"/v1/chat/completions", {"messages": HI}, b'data: {"error":'),
        (b"/v1/completions", {"prompt": "hi"}, b'data: {"error":'),
        (b"/v1/messages", {"messages": HI, "max_tokens": 9}, b"event: error\n"),
        (b"/v1/responses", {"input": "hi"}, b"event: response.failed\n"),
    ],
)
async def test_what_is_left_at_the_end_is_told_so(
    bench: Bench, path: bytes, extra: dict[str, object], last: bytes
) -> None:
    """A stream by its last event; a whole answer by its status, as any that comes so late."""
    bench.dispatcher.hold_at = 1
    whole = post_to(path, json.dumps({"model": MODEL, **extra}).encode())
    stream = post_to(path, json.dumps({"model": MODEL, "stream": True, **extra}).encode())
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(bench.served(drain_s=LONG_S))
        streamed = await stack.enter_async_context(connected(url))
        waits = await stack.enter_async_context(connected(url))
        streamed.send(stream)
        await streamed.head()
        waits.send(whole)
        await soon(lambda: bench.dispatcher.num_active == 2)
        await server.linger(0.0)
        server.hurry()
        body = await streamed.body()
        told = body.rstrip(b"\n").rsplit(b"\n\n", 1)[-1] + b"\n"
        assert told.startswith(last), body
        assert b"restarted" in told
        assert await streamed.ended()
        answer = await waits.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert b"restarted" in answer.body


async def test_a_client_that_takes_nothing_does_not_keep_it(bench: Bench) -> None:
    bench.dispatcher.reply = "word " * 100
    body = json.dumps({"model": MODEL, "messages": HI, "stream": True, "max_tokens": 10**4})
    bench.dispatcher.hold_at = 8000
    async with AsyncExitStack() as stack:
        clients = await stack.enter_async_context(AsyncExitStack())
        server, url = await stack.enter_async_context(
            bench.served(drain_s=0.0, max_lag_bytes=1 << 30, clamp_max_tokens=True)
        )
        client = await clients.enter_async_context(connected(url))
        client.send(post(body=body.encode()))
        await client.head()
        await server.linger(0.0)
        await soon(lambda: not server.server_state.connections and not server.server_state.tasks)
