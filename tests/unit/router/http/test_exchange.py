import asyncio
from collections.abc import Iterable

import pytest
from starlette.types import Message, Scope

from router.http.exchange import Exchange
from router.openai.errors import ApiError, ClientGone
from router.runtime import ApiLimits

pytestmark = pytest.mark.anyio
LIMITS = ApiLimits(max_body_bytes=10, body_timeout_s=0.05, write_timeout_s=0.05)
GONE: Message = {"type": "http.disconnect"}


def exchange_of(
    messages: Iterable[Message], *, headers: Iterable[tuple[bytes, bytes]] = (), stuck: bool = False
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
    return Exchange(scope, receive, send, limits=LIMITS)


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_the_parts_of_a_body_are_put_together() -> None:
    assert await exchange_of([part(b"ab", more=True), part(b"c", more=False)]).read_body() == b"abc"


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
        await exchange_of(parts, headers=headers).read_body()
    assert raised.value.status == 413


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert await exchange_of([part(b"x" * 10, more=False)]).read_body() == b"x" * 10


async def test_an_unfinished_body_is_given_up() -> None:
    with pytest.raises(ApiError) as raised:
        await exchange_of([part(b"x", more=True)]).read_body()
    assert raised.value.status == 408


async def test_a_client_that_leaves_while_sending_is_gone() -> None:
    with pytest.raises(ClientGone):
        await exchange_of([part(b"x", more=True), GONE]).read_body()


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
