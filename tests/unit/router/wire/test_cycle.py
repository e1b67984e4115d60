"""What a stream writes past ASGI, as its connection sees it."""

import asyncio
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from router.api.stream_door import EXTENSION, LentSocket, StreamDoor
from router.wire.cycle import Cycle

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}
END = {"type": "http.response.body", "body": b"", "more_body": False}


class Transport:
    """Takes everything, and says that `num_waiting` bytes wait."""

    def __init__(self) -> None:
        self.written = b""
        self.num_waiting = 0
        self.descriptor = 77
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.num_waiting

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.written += b"<closed>"

    def resume_reading(self) -> None:
        raise AssertionError


def cycle(transport: Transport, *, version: str = "1.1", method: str = "POST") -> Cycle:
    flow: Any = FlowControl(transport)  # type: ignore[arg-type]
    scope: Any = {"type": "http", "http_version": version, "method": method, "headers": []}
    made = Cycle(
        scope=scope, transport=transport, flow=flow, logger=None, access_logger=None,  # type: ignore[arg-type]
        access_log=False, default_headers=[], message_event=asyncio.Event(),
        expect_100_continue=False, keep_alive=version == "1.1", on_response=lambda: None,
    )  # fmt: skip
    made.more_body = False
    return made


async def streamed(transport: Transport, **of: Any) -> bytes:
    """The body of two pieces, as written."""
    made = cycle(transport, **of)
    await made.send(HEAD)  # type: ignore[arg-type]
    _, _, before = transport.written.partition(b"\r\n\r\n")
    assert before == b""
    for piece in (b"one", b"", b"two three, four five"):
        made.write_now(piece)
    await made.send(END)  # type: ignore[arg-type]
    return transport.written.partition(b"\r\n\r\n")[2]


def test_pieces_are_chunks_of_http_and_an_empty_one_is_not_the_last() -> None:
    whole = asyncio.run(streamed(Transport()))
    assert whole == b"3\r\none\r\n14\r\ntwo three, four five\r\n0\r\n\r\n"


def test_to_a_client_that_knows_no_chunks_pieces_are_as_they_are_until_the_close() -> None:
    assert asyncio.run(streamed(Transport(), version="1.0")) == b"onetwo three, four five<closed>"


def test_a_stream_that_head_asks_for_has_no_body() -> None:
    assert asyncio.run(streamed(Transport(), method="HEAD")) == b""


def test_what_waits_for_the_client_is_told_and_nothing_of_one_that_is_gone() -> None:
    async def test() -> None:
        transport = Transport()
        made = cycle(transport)
        await made.send(HEAD)  # type: ignore[arg-type]
        transport.num_waiting = 7
        assert made.write_now(b"x") == 7
        made.disconnected = True
        before = transport.written
        assert made.write_now(b"y") == 0
        assert transport.written == before

    asyncio.run(test())


def test_a_head_does_not_wait_for_the_client_though_a_body_does() -> None:
    async def test() -> None:
        transport = Transport()
        made = cycle(transport)
        made.flow.pause_writing()
        await asyncio.wait_for(made.send(HEAD), timeout=5)  # type: ignore[arg-type]
        assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.send(END), timeout=0.01)  # type: ignore[arg-type]

    asyncio.run(test())


def test_a_request_has_the_door_while_it_is_answered_and_no_longer() -> None:
    async def test() -> None:
        doors: list[StreamDoor] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            doors.append(scope["extensions"][EXTENSION])
            await send(HEAD)
            await send(END)

        made = cycle(Transport())
        await made.run_asgi(app)
        assert doors == [made]
        assert "extensions" not in made.scope

    asyncio.run(test())


def test_a_socket_is_lent_until_anything_else_is_written() -> None:
    async def test() -> None:
        transport = Transport()
        made = cycle(transport)
        assert made.lend_socket(lambda: None) is None, "nothing has begun"
        await made.send(HEAD)  # type: ignore[arg-type]
        for write in (lambda: made.write_now(b"x"), lambda: made.send(END)):  # type: ignore[arg-type]
            before = transport.written
            given_back: list[bytes] = []

            def give_back(before: bytes = before, told: list[bytes] = given_back) -> None:
                assert transport.written == before, "too late"
                told.append(before)

            assert made.lend_socket(give_back) == LentSocket(descriptor=77, is_chunked=True)
            written: Any = write()
            if written is not None and not isinstance(written, int):
                await written
            assert given_back == [before]
            assert transport.written != before

    asyncio.run(test())


def test_no_socket_is_lent_whose_bytes_would_overtake_others_or_reach_nobody() -> None:
    async def lent(**facts: Any) -> LentSocket | None:
        transport = Transport()
        made = cycle(transport, method=facts.pop("method", "POST"))
        await made.send(HEAD)  # type: ignore[arg-type]
        for name, value in facts.items():
            setattr(made if name == "disconnected" else transport, name, value)
        return made.lend_socket(lambda: None)

    async def test() -> None:
        assert await lent() is not None
        for fact in (
            {"num_waiting": 1}, {"closing": True}, {"disconnected": True}, {"descriptor": -1},
            {"method": "HEAD"},
        ):  # fmt: skip
            assert await lent(**fact) is None, fact

    asyncio.run(test())


def test_what_a_lent_socket_did_not_take_is_written_as_it_is() -> None:
    async def test() -> None:
        transport = Transport()
        made = cycle(transport)
        await made.send(HEAD)  # type: ignore[arg-type]
        before, transport.num_waiting = transport.written, 3
        assert made.write_rest(b"ne\r\n") == 3
        assert transport.written == before + b"ne\r\n"
        made.disconnected = True
        assert made.write_rest(b"x") == 0

    asyncio.run(test())
