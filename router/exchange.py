"""One HTTP exchange over ASGI: the body within its limits, writes with a deadline, the hang-up.

Used by `router.generate` and the sinks. Nothing of it is shared between requests.
"""

import asyncio

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from router.failures import ApiError, ClientGone
from router.runtime import ApiLimits


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limits: ApiLimits) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits

    async def read_body(self) -> bytes:
        """The request's body. Raises ApiError 413 or 408, and ClientGone.

        The limit holds whether the length was announced or not: no more is ever kept.
        """
        if self._announced_bytes() > self._limits.max_body_bytes:
            raise self._too_large()
        timeout_s = self._limits.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read()
        except TimeoutError as error:
            message = f"request body: not complete after {timeout_s:g} s"
            raise ApiError(408, message, code="body_timeout") from error

    async def until_gone(self) -> None:
        """Returns when the client has closed the connection. Call it after `read_body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Raises ClientGone when the client is gone or takes nothing any more."""
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await self._send(message)
        except OSError as error:  # TimeoutError is one
            raise ClientGone from error

    async def respond(self, response: Response) -> None:
        await response(self.scope, self._receive, self.send)

    def _announced_bytes(self) -> int:
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value)
        return 0

    async def _read(self) -> bytes:
        chunks: list[bytes] = []
        num_bytes, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            num_bytes += len(chunk)
            if num_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self) -> ApiError:
        message = f"request body: at most {self._limits.max_body_bytes} bytes"
        return ApiError(413, message, code="body_too_large")
