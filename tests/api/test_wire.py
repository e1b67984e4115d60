"""What only a real socket shows: slow, huge, cut and silent clients."""

import asyncio
import json

import pytest
from support.api import HI, MODEL, Bench
from support.eventually import soon

pytestmark = pytest.mark.anyio
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


class Raw:
    """One TCP connection to the server, and what came back on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> "Raw":
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout=20)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def request(**fields: object) -> bytes:
    body = json.dumps({"model": MODEL, "messages": HI} | fields).encode()
    return CHAT + b"content-length: %d\r\n\r\n" % len(body) + body


async def test_a_chunked_body_without_end_is_cut_at_the_limit(bench: Bench) -> None:
    async with bench.serving(max_body_bytes=10_000) as url:
        client = await Raw.connect(url)
        client.writer.write(CHAT + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            client.writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        head = await client.head()
        assert b" 413 " in head.splitlines()[0] and b"connection: close" in head
        await client.close()


async def test_an_announced_huge_body_is_refused_before_it_is_sent(bench: Bench) -> None:
    async with bench.serving() as url:
        client = await Raw.connect(url)
        client.writer.write(CHAT + b"content-length: 99999999999\r\n\r\n")
        assert b" 413 " in (await client.head()).splitlines()[0]
        await client.close()


async def test_a_body_that_never_comes_is_given_up(bench: Bench) -> None:
    async with bench.serving(body_timeout_s=0.1) as url:
        client = await Raw.connect(url)
        client.writer.write(CHAT + b"content-length: 10\r\n\r\n{")
        assert b" 408 " in (await client.head()).splitlines()[0]
        await client.close()


async def test_a_connection_cut_mid_stream_aborts_the_request(bench: Bench) -> None:
    bench.dispatcher.hold_at = 3
    async with bench.serving() as url:
        client = await Raw.connect(url)
        client.writer.write(request(stream=True))
        assert b" 200 " in (await client.head()).splitlines()[0]
        client.writer.transport.abort()
        await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")


async def test_a_connection_cut_while_waiting_aborts_the_request(bench: Bench) -> None:
    bench.dispatcher.hold_at = 0
    async with bench.serving() as url:
        client = await Raw.connect(url)
        client.writer.write(request())
        await soon(lambda: bench.dispatcher.num_active == 1, what="active")
        client.writer.transport.abort()
        await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")


async def test_a_client_that_stops_reading_is_given_up(bench: Bench) -> None:
    bench.dispatcher.reply = "x" * 200
    async with bench.serving(write_timeout_s=0.2) as url:
        client = await Raw.connect(url)
        client.writer.write(request(stream=True, n=100, logprobs=True, top_logprobs=20))
        await soon(lambda: bench.dispatcher.num_active > 0, what="active")
        await soon(lambda: bench.dispatcher.num_aborted > 0, what="aborted")
        await soon(lambda: bench.dispatcher.num_active == 0, what="active")
        client.writer.transport.abort()


async def test_the_seats_of_clients_that_left_are_free_again(bench: Bench) -> None:
    bench.dispatcher.hold_at = 1
    async with bench.serving(max_in_flight=1) as url:
        for _ in range(3):
            client = await Raw.connect(url)
            client.writer.write(request(stream=True))
            assert b" 200 " in (await client.head()).splitlines()[0]
            client.writer.transport.abort()
            await soon(lambda: bench.dispatcher.num_active == 0, what="active")


async def test_one_connection_serves_many_requests(bench: Bench) -> None:
    async with bench.serving() as url:
        client = await Raw.connect(url)
        for _ in range(3):
            client.writer.write(request())
            head = await client.head()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await client.reader.readexactly(length))
            assert answer["choices"][0]["message"]["content"] == "Hello there."
        await client.close()
