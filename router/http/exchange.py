"""One HTTP exchange over ASGI: the body within its limits, writes, the hang-up.

Nothing of it is shared between requests.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from protocol.errors import BatonError
from router.api.errors import ApiError, ClientGone, ShowError, openai_error
from router.api.stream_door import EXTENSION, StreamDoor
from router.http.admission import Share
from router.http.content import Decoder, check_content_type
from router.runtime import ApiLimits

T = TypeVar("T")


class Exchange:
    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        limits: ApiLimits,
        show_error: ShowError = openai_error,
    ) -> None:
        self.scope = scope
        self.show_error = show_error
        self._receive = receive
        self._send = send
        self._limits = limits
        self._max_bytes = min(limits.max_body_bytes, limits.max_bodies_bytes)
        self._loop = asyncio.get_running_loop()
        self._writing_since: float | None = None

    @property
    def stream_door(self) -> StreamDoor:
        door: StreamDoor = self.scope["extensions"][EXTENSION]
        return door

    @property
    def max_lag_bytes(self) -> int:
        return self._limits.max_lag_bytes

    async def read_body(self, room: Share) -> bytes:
        """The request's body, decoded; `room` grows with it. Raises ApiError 400, 408, 413 or 415,
        CapacityError when there is no room, and ClientGone.

        The limit holds whether the length was announced or not: no more is ever kept.
        """
        headers = dict(self.scope["headers"])
        check_content_type(headers.get(b"content-type", b""))
        decoder = Decoder(headers.get(b"content-encoding", b""))
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        timeout_s = self._limits.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(decoder, room)
        except TimeoutError as error:
            message = f"request body: not complete after {timeout_s:g} s"
            raise ApiError(408, message, code="body_timeout") from error

    async def until_gone(self) -> None:
        """Returns when the client has hung up, or takes no bytes for `write_timeout_s`.

        Call it after `read_body`, beside the task that sends: one timer watches all writes,
        because a deadline of its own for each would double the cost of a token.
        """
        timeout_s = self._limits.write_timeout_s
        gone = False
        while not gone:
            try:
                async with asyncio.timeout(timeout_s):
                    gone = (await self._receive())["type"] == "http.disconnect"
            except TimeoutError:
                gone = self._is_stuck(timeout_s)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; raises what it does, of errors that are told, and ClientGone when
        `until_gone` is first, which cancels it."""
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(_outcome(work), name="answer")
            watching = tasks.create_task(self._cancel_when_gone(working), name="hang-up")
            working.add_done_callback(lambda _: watching.cancel())
        if working.cancelled():
            raise ClientGone
        outcome, error = working.result()
        if error is not None:
            raise error
        return cast(T, outcome)

    async def send(self, message: Message) -> None:
        """Raises ClientGone when the server says that the client is gone."""
        self._writing_since = self._loop.time()
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error
        finally:
            self._writing_since = None

    def write_head(self, message: Message) -> None:
        """The head of a response, which no server makes us wait with."""
        sending = self._send(message).__await__()
        with suppress(StopIteration):
            next(sending)
            raise AssertionError("the head of a response waits")

    async def respond(self, response: Response) -> None:
        await response(self.scope, self._receive, self.send)

    async def refuse(self, error: ApiError) -> None:
        await self.respond(error.response(self.show_error))

    async def _cancel_when_gone(self, working: asyncio.Task[Any]) -> None:
        await self.until_gone()
        working.cancel()

    def _is_stuck(self, timeout_s: float) -> bool:
        since = self._writing_since
        return since is not None and self._loop.time() - since >= timeout_s

    async def _read(self, decoder: Decoder, room: Share) -> bytes:
        body = bytearray()  # grows in place: joining 8 MB would stop every stream for 4 ms
        num_sent, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            num_sent += len(chunk)
            for piece in decoder.pieces(chunk):
                if max(num_sent, room.num + len(piece)) > self._max_bytes:
                    raise self._too_large()
                room.widen(room.num + len(piece))
                body += piece
                if len(piece) > len(chunk):  # a small chunk may decode to many large pieces
                    await asyncio.sleep(0)
            more = message.get("more_body", False)
        decoder.check_end()
        return cast(bytes, body)  # whoever decodes it takes either

    def _too_large(self) -> ApiError:
        message = f"request body: at most {self._max_bytes} bytes"
        return ApiError(413, message, code="body_too_large")


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[T | None, Exception | None]:
    """Errors as values: a group of tasks would make a group of them."""
    try:
        return await work, None
    except (ApiError, BatonError, ClientGone) as error:
        return None, error
