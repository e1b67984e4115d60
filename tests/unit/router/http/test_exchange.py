import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest
from starlette.types import Message, Scope

from protocol.errors import CapacityError
from router.api.errors import ApiError, ClientGone
from router.http.admission import Share, Stock
from router.http.exchange import Exchange
from router.runtime import ApiLimits

pytestmark = pytest.mark.anyio
LIMITS = ApiLimits(max_body_bytes=10, body_timeout_s=60.0, write_timeout_s=0.05)
HASTY = replace(LIMITS, body_timeout_s=0.05)
GONE: Message = {"type": "http.disconnect"}
zipped = partial(gzip.compress, mtime=0)  # else the names of tests have the time in them


def exchange_of(
    messages: Iterable[Message],
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    stuck: bool = False,
    limits: ApiLimits = LIMITS,
) -> Exchange:
    """A client that sends `messages` and then nothing; it takes no bytes if `stuck`."""
    waiting = iter(messages)

    async def receive() -> Message:
        for message in waiting:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "reset":
            raise ConnectionResetError
        if stuck:
            await asyncio.Event().wait()

    scope: Scope = {"type": "http", "headers": list(headers)}
    return Exchange(scope, receive, send, limits=limits)


def room(size: int = 1000) -> Share:
    return Share(Stock(size, what="bytes", retry_after_s=1.0), "client")


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_the_parts_of_a_body_are_put_together() -> None:
    assert (
        await exchange_of([part(b"ab", more=True), part(b"c", more=False)]).read_body(room())
        == b"abc"
    )


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ([(b"content-length", b"11")], []),
        ([], [part(b"x" * 6, more=True), part(b"x" * 5, more=True)]),
        ([(b"content-length", b"+9")], [part(b"x" * 11, more=False)]),
    ],
)
async def test_more_than_the_limit_is_never_read(
    headers: list[tuple[bytes, bytes]], parts: list[Message]
) -> None:
    with pytest.raises(ApiError, match="at most 10 bytes") as raised:
        await exchange_of(parts, headers=headers).read_body(room())
    assert raised.value.status == 413


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert await exchange_of([part(b"x" * 10, more=False)]).read_body(room()) == b"x" * 10


async def test_an_unfinished_body_is_given_up() -> None:
    with pytest.raises(ApiError) as raised:
        await exchange_of([part(b"x", more=True)], limits=HASTY).read_body(room())
    assert raised.value.status == 408


async def test_a_client_that_leaves_while_sending_is_gone() -> None:
    with pytest.raises(ClientGone):
        await exchange_of([part(b"x", more=True), GONE]).read_body(room())


async def test_a_client_that_hangs_up_is_noticed() -> None:
    await exchange_of([part(b"", more=False), GONE]).until_gone()


async def test_a_client_that_takes_no_bytes_is_as_good_as_gone() -> None:
    exchange = exchange_of([], stuck=True)
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(exchange.send({"type": "http.response.body"}), name="write")
        await exchange.until_gone()
        writing.cancel()


async def test_a_client_that_only_waits_is_not_gone() -> None:
    exchange = exchange_of([])
    await exchange.send({"type": "http.response.body"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * LIMITS.write_timeout_s):
            await exchange.until_gone()


async def test_a_reset_connection_means_that_the_client_is_gone() -> None:
    with pytest.raises(ClientGone):
        await exchange_of([]).send({"type": "reset"})


async def test_no_more_is_read_than_there_is_room_for() -> None:
    with pytest.raises(CapacityError, match="0 of 2 bytes"):
        await exchange_of([part(b"abc", more=True)]).read_body(room(2))


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP", gzip.compress),
        (b"gzip", lambda text: b"".join(map(gzip.compress, (text[:3], b"", text[3:], b"")))),
        (b"deflate", zlib.compress),
        (b"deflate", lambda text: zlib.compress(text)[2:-4]),  # as some clients understand it
        (b"identity", bytes),
    ],
)
async def test_a_compressed_body_is_read_as_what_it_says(
    coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(b"x" * 10)
    headers = [(b"content-encoding", coding)]
    parts = [part(packed[i : i + 1], more=i + 1 < len(packed)) for i in range(len(packed))]
    limits = replace(LIMITS, max_body_bytes=100)
    assert await exchange_of(parts, headers=headers, limits=limits).read_body(room()) == b"x" * 10


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        (b"gzip", zipped(b"x" * (1 << 24))[:20_000], 413),
        (b"gzip", zipped(b"x")[:-3], 400),
        (b"gzip", zipped(b"x") + b"more", 400),
        (b"gzip", zipped(b"x") + zipped(b"x")[:-3], 400),
        (b"gzip", zipped(b"") * 2000, 400),
        (b"gzip", zipped(b" " * (1 << 19)) * 3, 413),
        (b"deflate", zlib.compress(b"x") * 2, 400),
        (b"gzip", b"plain", 400),
        (b"br", b"x", 415),
        (b"gzip, gzip", b"x", 415),
    ],
)
async def test_a_compressed_body_that_is_none_or_too_much_is_refused(
    coding: bytes, body: bytes, status: int
) -> None:
    asked = exchange_of(
        [part(body, more=False)],
        headers=[(b"content-encoding", coding)],
        limits=replace(LIMITS, max_body_bytes=1 << 20),
    )
    with pytest.raises(ApiError) as raised:
        await asked.read_body(room(1 << 20))
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"application/json", 200),
        (b"Application/JSON; Charset=UTF-8", 200),
        (b'application/json; charset="utf-8"', 200),
        (b"application/vnd.api+json", 200),
        (b"application/x-www-form-urlencoded", 200),
        (b"", 200),
        (b"text/plain", 415),
        (b"text/plain;application/json", 415),
        (b"multipart/form-data; boundary=x", 415),
        (b"application/json; charset=latin-1", 415),
    ],
)
async def test_a_body_is_json_or_refused_by_its_type(said: bytes, status: int) -> None:
    asked = exchange_of([part(b"{}", more=False)], headers=[(b"content-type", said)])
    if status == 200:
        assert await asked.read_body(room()) == b"{}"
    else:
        with pytest.raises(ApiError) as raised:
            await asked.read_body(room())
        assert raised.value.status == status
