"""What only a real socket shows: slow, huge, cut and silent clients."""

import json

import pytest
from support.api import HI, MODEL, Bench
from support.eventually import soon
from support.raw_http import CHAT, connected, post

pytestmark = pytest.mark.anyio


def request(**fields: object) -> bytes:
    return post(body=json.dumps({"model": MODEL, "messages": HI} | fields).encode())


async def test_a_chunked_body_without_end_is_cut_at_the_limit(bench: Bench) -> None:
    async with bench.serving(max_body_bytes=10_000) as url, connected(url) as client:
        client.send(CHAT + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            client.send(b"400\r\n" + b" " * 1024 + b"\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_an_announced_huge_body_is_refused_before_it_is_sent(bench: Bench) -> None:
    async with bench.serving() as url, connected(url) as client:
        client.send(CHAT + b"content-length: 99999999999\r\n\r\n")
        assert (await client.answer()).status == 413


async def test_a_body_that_never_comes_is_given_up(bench: Bench) -> None:
    async with bench.serving(body_timeout_s=0.1) as url, connected(url) as client:
        client.send(CHAT + b"content-length: 10\r\n\r\n{")
        assert (await client.answer()).status == 408


async def test_a_connection_cut_mid_stream_aborts_the_request(bench: Bench) -> None:
    bench.dispatcher.hold_at = 3
    async with bench.serving() as url, connected(url) as client:
        client.send(request(stream=True))
        assert b" 200 " in (await client.head()).splitlines()[0]
        client.writer.transport.abort()
        await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")


async def test_a_connection_cut_while_waiting_aborts_the_request(bench: Bench) -> None:
    bench.dispatcher.hold_at = 0
    async with bench.serving() as url, connected(url) as client:
        client.send(request())
        await soon(lambda: bench.dispatcher.num_active == 1, what="active")
        client.writer.transport.abort()
        await soon(lambda: bench.dispatcher.num_aborted == 1, what="aborted")


async def test_a_client_that_stops_reading_is_given_up(bench: Bench) -> None:
    bench.dispatcher.reply = "x" * 200
    async with bench.serving(write_timeout_s=0.2) as url, connected(url) as client:
        client.send(request(stream=True, n=100, logprobs=True, top_logprobs=20))
        await soon(lambda: bench.dispatcher.num_active > 0, what="active")
        await soon(lambda: bench.dispatcher.num_aborted > 0, what="aborted")
        await soon(lambda: bench.dispatcher.num_active == 0, what="active")
        client.writer.transport.abort()


async def test_a_client_that_lags_is_cut_off_counted_and_told_why_when_it_reads(
    bench: Bench,
) -> None:
    bench.dispatcher.reply = "x" * 200
    async with bench.serving(max_lag_bytes=10_000) as url, connected(url) as client:
        client.send(request(stream=True, n=100, logprobs=True, top_logprobs=20))
        await soon(lambda: bench.dispatcher.num_active > 0, what="active")
        await soon(lambda: bench.dispatcher.num_aborted > 0, what="aborted")
        await soon(lambda: bench.dispatcher.num_active == 0, what="active")
        told = b""
        while not told.endswith(b"\r\n0\r\n\r\n"):
            read = await client.reader.read(1 << 20)
            assert read, "the connection was closed"
            told = (told + read)[-1000:]
    assert b"reads more slowly than the model writes" in told and b"[DONE]" not in told
    sample = bench.runtime.metrics.registry.get_sample_value
    assert sample("baton_router_slow_clients_total") == 1


async def test_the_seats_of_clients_that_left_are_free_again(bench: Bench) -> None:
    bench.dispatcher.hold_at = 1
    async with bench.serving(max_in_flight=1) as url:
        for _ in range(3):
            async with connected(url) as client:
                client.send(request(stream=True))
                assert b" 200 " in (await client.head()).splitlines()[0]
                client.writer.transport.abort()
            await soon(lambda: bench.dispatcher.num_active == 0, what="active")


async def test_one_connection_serves_many_requests(bench: Bench) -> None:
    async with bench.serving() as url, connected(url) as client:
        for _ in range(3):
            client.send(request())
            answer = json.loads((await client.answer()).body)
            assert answer["choices"][0]["message"]["content"] == "Hello there."


MESSAGES = b"POST %b HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n"


@pytest.mark.parametrize("target", [b"/v1/messages", b"http://a//v1/messages/?beta=true"])
@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"Expect: gold\r\n\r\n", 417),
        (b"Content-Length: 9999999999999999\r\n\r\n", 413),
        (b"x: " + b"y" * 40_000, 431),
    ],
)
async def test_what_never_becomes_a_request_is_refused_as_its_clients_read_it(
    bench: Bench, target: bytes, rest: bytes, status: int
) -> None:
    async with bench.serving() as url, connected(url) as client:
        client.send(MESSAGES % target + rest)
        answer = await client.answer()
        assert answer.status == status
        assert json.loads(answer.body)["type"] == "error"
        assert answer.headers["x-request-id"] == answer.headers["request-id"] == "mine"
