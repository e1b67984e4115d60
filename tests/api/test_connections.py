"""What a connection does with clients that leave, wait or never speak, in bytes."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from support.api import HI, MODEL, Bench
from support.eventually import soon
from support.raw_http import CHAT, HEALTH, connected, exchange, post

from router.http.middleware import PROBED_PATHS
from router.settings import RouterSettings
from router.wire.limits import ConnectionLimits

pytestmark = pytest.mark.anyio
BODY = json.dumps({"model": MODEL, "messages": HI}).encode()
WHOLE, LAST = post(body=BODY), post(b"Connection: close", body=BODY)


async def test_a_client_that_says_it_is_its_last_request_may_wait_long_for_it(
    bench: Bench,
) -> None:
    bench.dispatcher.hold_at = 1
    limits = ConnectionLimits(half_closed_s=0.0)
    async with bench.serving(limits) as url, connected(url) as client:
        client.send(LAST)
        client.half_close()
        await soon(lambda: bench.dispatcher.num_active == 1)
        async with connected(url) as other:
            other.send(WHOLE)
            await soon(lambda: bench.dispatcher.num_active == 2)
            other.half_close()
            await soon(lambda: bench.dispatcher.num_aborted == 1)
            bench.dispatcher.release.set()
            assert b"Hello there." in (await client.answer()).body


async def test_the_answer_to_a_body_that_is_still_sent_arrives(bench: Bench) -> None:
    """A refusal must not be lost in a reset, though nobody reads the rest."""
    async with bench.serving(api_keys=("right",)) as url, connected(url) as client:
        body = b" " * (4 << 20)
        client.send(CHAT + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 1 << 18):
            client.send(body[start : start + (1 << 18)])
            await client.writer.drain()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await client.ended()


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_head_that_does_not_come_is_given_up(bench: Bench, sent: bytes) -> None:
    """Silent clients are closed; others are told."""
    async with bench.serving(ConnectionLimits(head_timeout_s=0.1)) as url:
        async with connected(url) as client:
            client.send(sent)
            if sent:
                assert (await client.answer()).error["code"] == "head_timeout"
            assert await client.ended()
        assert (await exchange(url, HEALTH)).status == 200


async def test_the_second_head_of_a_connection_has_a_deadline_too(bench: Bench) -> None:
    async with bench.serving(ConnectionLimits(head_timeout_s=0.2)) as url, connected(url) as client:
        client.send(HEALTH + HEALTH[:9])
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 408
        assert await client.ended()


async def test_a_connection_may_be_silent_between_requests_for_as_long_as_is_set(
    bench: Bench,
) -> None:
    limits = ConnectionLimits(head_timeout_s=0.05, keep_alive_s=0.5)
    async with bench.serving(limits) as url, connected(url) as client:
        for _ in range(2):
            client.send(HEALTH)
            assert (await client.answer()).status == 200
            await asyncio.sleep(0.2)  # longer than a head may take
        assert await client.ended()


async def test_an_empty_line_too_many_hides_neither_the_next_request_nor_the_end(
    bench: Bench,
) -> None:
    bench.dispatcher.hold_at = 1
    limits = ConnectionLimits(head_timeout_s=0.05)
    async with bench.serving(limits) as url, connected(url) as client:
        client.send(HEALTH + b"\r\n")
        assert (await client.answer()).status == 200
        await asyncio.sleep(0.1)
        client.send(b"\r\n" + WHOLE + b"\r\n")
        await soon(lambda: bench.dispatcher.num_active == 1)
        client.writer.close()
        await soon(lambda: bench.dispatcher.num_aborted == 1)


def test_a_connection_outlives_those_that_proxies_keep() -> None:
    assert ConnectionLimits().keep_alive_s == RouterSettings().keep_alive_s == 75


async def test_the_longest_silent_make_room_and_the_router_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench.serving(max_connections=3) as url, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connected(url)) for _ in range(3)]
        silent[0].send(HEALTH[:-2])
        silent[1].send(HEALTH)
        assert (await silent[1].answer()).status == 200
        assert (await exchange(url, HEALTH)).status == 200
        answer = await silent[0].answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert await silent[0].ended()
        assert (await exchange(url, HEALTH)).status == 200
        silent[2].send(HEALTH)
        assert (await silent[2].answer()).status == 200
    assert [r.message for r in caplog.records if r.name == "baton.http"] == [
        "connections full; the idlest is closed"
    ]


async def test_who_is_being_answered_makes_no_room(bench: Bench) -> None:
    bench.dispatcher.hold_at = 1
    async with bench.serving(max_connections=1) as url, connected(url) as client:
        client.send(WHOLE)
        await soon(lambda: bench.dispatcher.num_active == 1)
        async with connected(url) as other:
            other.send(WHOLE)
            assert (await other.answer()).error["code"] == "overloaded"
            assert await other.ended()
        bench.dispatcher.release.set()
        assert (await client.answer()).status == 200


async def test_a_full_router_still_answers_probes_and_nothing_else(bench: Bench) -> None:
    bench.dispatcher.hold_at = 1
    async with bench.serving(max_connections=1) as url, connected(url) as client:
        client.send(LAST)
        await soon(lambda: bench.dispatcher.num_active == 1)
        for path in PROBED_PATHS:
            answer = await exchange(url, HEALTH.replace(b"/health", path.encode()))
            assert answer.status == 200, path
        async with connected(url) as probe:
            probe.send(HEALTH)
            assert (await probe.answer()).status == 200
            probe.send(WHOLE)
            assert (await probe.answer()).error["code"] == "overloaded"
            assert await probe.ended()
        async with connected(url) as probe:
            probe.send(HEALTH)
            assert (await probe.answer()).status == 200
            bench.dispatcher.release.set()
            assert (await client.answer()).status == 200
            assert await client.ended()
            probe.send(WHOLE)
            assert (await probe.answer()).status == 200


async def test_a_client_that_reads_nothing_is_cut_off(bench: Bench) -> None:
    """It asks on and on and never reads: neither its answers nor its questions pile up."""
    metrics = HEALTH.replace(b"/health", b"/metrics")
    async with bench.serving(ConnectionLimits(write_timeout_s=0.3)) as url:
        async with connected(url) as client:
            with pytest.raises(OSError):
                async with asyncio.timeout(20):
                    while True:
                        client.send(metrics * 1000)
                        await client.writer.drain()
        assert (await exchange(url, HEALTH)).status == 200


@pytest.mark.parametrize("size", [7, 64 << 10], ids=["in tiny chunks", "in large ones"])
async def test_a_large_body_arrives_though_its_client_is_gone_half_way_round(
    bench: Bench, size: int
) -> None:
    """It takes many turns of the loop; that the client has closed its side ends none of them."""
    body = b"\r\n" * (1 << 19) + BODY
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    async with bench.serving() as url, connected(url) as client:
        client.send(CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n" + HEALTH)
        client.half_close()
        assert b"Hello there." in (await client.answer()).body
        assert (await client.answer()).status == 200


async def test_a_large_answer_comes_in_pieces_and_a_small_one_has_its_length(bench: Bench) -> None:
    async with bench.serving() as url, connected(url) as client:
        for n, framing in ((1, "content-length"), (40, "transfer-encoding")):
            asked = {"model": MODEL, "messages": HI, "n": n, "logprobs": True, "top_logprobs": 20}
            client.send(post(body=json.dumps(asked).encode()))
            answer = await client.answer()
            assert framing in answer.headers
            choices = json.loads(answer.body)["choices"]
            assert [choice["index"] for choice in choices] == list(range(n))
            assert all(choice["logprobs"]["content"] for choice in choices)


async def test_bodies_that_do_not_come_keep_nobody_out(bench: Bench) -> None:
    """One key, a hundred halves of bodies, four seats."""
    serving = bench.serving(max_in_flight=4, api_keys=("one", "two"))
    head = CHAT + b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
    async with serving as url, AsyncExitStack() as stack:
        for _ in range(90):
            client = await stack.enter_async_context(connected(url))
            client.send(head % (b"one", len(BODY)) + BODY[:20])
        for key in (b"one", b"two"):
            assert (await exchange(url, head % (key, len(BODY)) + BODY)).status == 200


async def test_bodies_share_one_budget_and_a_client_has_its_part_of_it(bench: Bench) -> None:
    serving = bench.serving(
        max_body_bytes=1000, max_bodies_bytes=2500, api_keys=("one", "two"), body_timeout_s=0.5
    )
    head = CHAT + b"Authorization: Bearer %b\r\nContent-Length: 1000\r\n\r\n"
    async with serving as url, AsyncExitStack() as stack:
        first = await stack.enter_async_context(connected(url))
        first.send(head % b"one" + b" " * 900)
        second = await stack.enter_async_context(connected(url))
        second.send(head % b"one" + b" " * 900)
        answer = await second.answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        other = await exchange(url, head % b"two" + b"{}" + b" " * 998)
        assert other.status == 400, "it was read"
        assert (await first.answer()).status == 408, "and its room is free"
        again = await exchange(url, head % b"one" + b"{}" + b" " * 998)
        assert again.status == 400


async def test_a_client_that_leaves_while_it_sends_is_no_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench.serving() as url:
        for sent in (WHOLE[:-5], WHOLE, HEALTH, HEALTH[:5], b"bad\r\n\r\n"):
            async with connected(url) as client:
                client.send(sent)
                client.writer.transport.abort()
        await soon(lambda: bench.dispatcher.num_active == 0)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
