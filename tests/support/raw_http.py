"""HTTP as bytes on a socket, for tests that hold for any server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 20.0
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def post(*headers: bytes, body: bytes) -> bytes:
    """A chat."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return CHAT + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    """With chunks put together."""

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        return error


class Raw:
    """One connection, and what comes back on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def half_close(self) -> None:
        self.writer.write_eof()

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout=PATIENCE_S)

    async def body(self) -> bytes:
        """Of an answer in chunks whose head was read."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._chunks()

    async def answer(self, *, to: str = "POST") -> Answer:
        """The next one, framed as RFC 9112 6.3 says."""
        async with asyncio.timeout(PATIENCE_S):
            first, *lines = (await self.head()).decode("latin-1").split("\r\n")[:-2]
            fields = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in fields}
            assert len(headers) == len(fields), "a header came twice"
            status = int(first.split()[1])
            if to == "HEAD" or status in (204, 304) or status < 200:
                body = b""
            elif headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return Answer(status=status, headers=headers, body=body)

    async def ended(self) -> bool:
        """Whether the server closes, having nothing more to say."""
        try:
            return await asyncio.wait_for(self.reader.read(1), timeout=PATIENCE_S) == b""
        except ConnectionResetError:
            return True

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self.reader.readline(), 16)
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            if size == 0:
                return body


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Raw]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def exchange(url: str, *parts: bytes, to: str = "POST") -> Answer:
    """The answer to these bytes on a connection of their own, each part in a packet of its own."""
    async with connected(url) as client:
        for part in parts:
            client.send(part)
            await asyncio.sleep(0)
        return await client.answer(to=to)
