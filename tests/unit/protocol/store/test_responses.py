"""Against a real redis-server."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from support.eventually import soon
from support.redis_server import RedisServer, redis_server

from protocol.errors import StoreError
from protocol.store.address import RedisAddress
from protocol.store.responses import LARGEST_SHARE, OVERHEAD_BYTES, KeptResponse, ResponseStore

MINE, YOURS = "owner-a", "owner-b"
SIZE = 1000
"""As counted, of what `said` makes."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def run(
    server: RedisServer,
    test: Callable[[ResponseStore], Awaitable[None]],
    *,
    ttl_s: float = 60.0,
    room_for: int = 8,
) -> None:
    async def bounded() -> None:
        store = ResponseStore(
            server.address, ttl_s=ttl_s, max_bytes=lambda: room_for * SIZE, deadline_s=5.0
        )
        try:
            async with asyncio.timeout(30):
                with server.client() as redis:
                    redis.flushall()
                await test(store)
        finally:
            await store.close()

    asyncio.run(bounded())


def said(text: str) -> KeptResponse:
    """Of `SIZE` bytes as they are counted."""
    packed = 1 + len(b"\xa8response") + 2 + len(b"\xa5items") + 3
    return KeptResponse(
        response=text.encode(), items=bytes(SIZE - OVERHEAD_BYTES - packed - len(text))
    )


async def kept_of(store: ResponseStore, *names: str, owner: str = MINE) -> str:
    """The letters of those that are there."""
    found = await store.find(owner, names)
    return "".join(one.response.decode() for one in found if one is not None)


def test_what_was_kept_is_found_until_it_is_deleted(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        assert await store.keep(MINE, "a", said("a"))
        assert await store.find(MINE, ["a", "b"]) == (said("a"), None)
        assert await store.num_bytes(MINE, ["a", "b"]) == SIZE - OVERHEAD_BYTES
        assert await store.delete(MINE, "a")
        assert not await store.delete(MINE, "a")
        assert await store.find(MINE, ["a"]) == (None,)

    run(server, test)


def test_no_owner_sees_or_pushes_out_what_another_kept(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        await store.keep(MINE, "a", said("a"))
        assert await store.find(YOURS, ["a"]) == (None,)
        assert not await store.delete(YOURS, "a")
        for number in range(10):
            await store.keep(YOURS, str(number), said("y"))
        assert await kept_of(store, "a") == "a"

    run(server, test)


def test_the_oldest_make_room_and_no_more_than_that(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        for letter in "abcdefgh":
            await store.keep(MINE, letter, said(letter))
        assert await kept_of(store, *"abcdefgh") == "abcdefgh"
        await store.keep(MINE, "i", said("i"))
        assert await kept_of(store, *"abcdefghi") == "bcdefghi"

    run(server, test, room_for=8)


def test_bytes_are_given_back_by_deletion_and_by_being_kept_again(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        for letter in "abcdefg":
            await store.keep(MINE, letter, said(letter))
        await store.keep(MINE, "g", said("g"))
        await store.delete(MINE, "a")
        for letter in "hi":
            await store.keep(MINE, letter, said(letter))
        assert await kept_of(store, *"abcdefghi") == "bcdefghi"

    run(server, test, room_for=8)


@pytest.mark.parametrize("book", ["bytes", "sizes", "ends"])
def test_the_books_are_no_responses_whatever_a_client_asks_for(
    server: RedisServer, book: str
) -> None:
    async def test(store: ResponseStore) -> None:
        for letter in "abcdefgh":
            await store.keep(MINE, letter, said(letter))
        assert await store.num_bytes(MINE, [book]) == 0
        assert await store.find(MINE, [book]) == (None,)
        assert not await store.delete(MINE, book)
        await store.keep(MINE, "i", said("i"))
        assert await kept_of(store, *"abcdefghi") == "bcdefghi"

    run(server, test, room_for=8)


def test_what_has_ended_is_gone_and_its_bytes_are_back(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        await store.keep(MINE, "a", said("a"))
        await soon(lambda: not _exists(server, f"responses:{MINE}:id:a"), what="it has ended")
        await store.keep(MINE, "b", said("b"))
        with server.client() as redis:
            assert redis.get(f"responses:{MINE}:bytes") == str(SIZE).encode()
            assert redis.zcard(f"responses:{MINE}:ends") == 1
        await soon(lambda: not _exists(server, f"responses:{MINE}:sizes"), what="no books are left")

    run(server, test, ttl_s=0.2)


def test_one_that_would_push_out_too_many_is_not_kept(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        await store.keep(MINE, "a", said("a"))
        large = KeptResponse(response=b"", items=bytes(8 * SIZE // LARGEST_SHARE))
        assert not await store.keep(MINE, "b", large)
        assert await kept_of(store, "a") == "a"

    run(server, test)


def test_a_redis_that_came_back_empty_keeps_on(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        await store.keep(MINE, "a", said("a"))
        with server.client() as redis:
            redis.delete(f"responses:{MINE}:sizes", f"responses:{MINE}:ends")
        for letter in "bcdefgh":
            assert await store.keep(MINE, letter, said(letter))
        assert await kept_of(store, "h") == "h"

    run(server, test)


def test_what_cannot_be_read_is_not_there(server: RedisServer) -> None:
    async def test(store: ResponseStore) -> None:
        with server.client() as redis:
            redis.set(f"responses:{MINE}:id:a", b"\xc1")
        assert await store.find(MINE, ["a"]) == (None,)

    run(server, test)


def test_no_redis_is_an_error_of_the_store() -> None:
    async def test() -> None:
        store = ResponseStore(
            RedisAddress(url="redis://127.0.0.1:1/0"),
            ttl_s=1,
            max_bytes=lambda: 8 * SIZE,
            deadline_s=1.0,
        )
        with pytest.raises(StoreError):
            await store.find(MINE, ["a"])
        await store.close()

    asyncio.run(test())


def _exists(server: RedisServer, key: str) -> bool:
    with server.client() as redis:
        return bool(redis.exists(key))
