"""One HTTP exchange over ASGI: the body within its limits, writes, the hang-up.

Nothing of it is shared between requests.
"""

import asyncio

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from router.openai.errors import ApiError, ClientGone
from router.runtime import ApiLimits


class Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limits: ApiLimits) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._writing_since: float | None = None

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

    async def send(self, message: Message) -> None:
        """Raises ClientGone when the server says that the client is gone."""
        self._writing_since = self._loop.time()
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error
        finally:
            self._writing_since = None

    async def respond(self, response: Response) -> None:
        await response(self.scope, self._receive, self.send)

    def _is_stuck(self, timeout_s: float) -> bool:
        since = self._writing_since
        return since is not None and self._loop.time() - since >= timeout_s

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
