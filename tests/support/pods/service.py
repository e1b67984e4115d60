"""A Service: a TCP proxy to pods that are ready, by a list of them that is some seconds old."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

Endpoint = tuple[str, int]
LOOK_S = 0.05
_CHUNK_BYTES = 1 << 16


class Service:
    """`serve` it on an address; each connection goes to the next endpoint. Connections are never
    moved: what a pod does to one is seen by its client."""

    def __init__(self, endpoints: Callable[[], Sequence[Endpoint]], *, lag_s: float) -> None:
        self._endpoints = endpoints
        self.lag_s = lag_s
        self._news: deque[tuple[float, tuple[Endpoint, ...]]] = deque()
        self.known: tuple[Endpoint, ...] = ()
        self.refused: list[str] = []
        """Connections, why and when."""
        self._turns = count()

    async def serve(self, host: str, port: int) -> None:
        async with asyncio.TaskGroup() as tasks:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                passing = tasks.create_task(self._pass(reader, writer), name="connection")
                passing.add_done_callback(lambda _: writer.close())

            server = await asyncio.start_server(accept, host, port, backlog=1024)
            async with server:
                tasks.create_task(self._follow(), name="endpoints")
                await server.serve_forever()

    async def _follow(self) -> None:
        seen: tuple[Endpoint, ...] = ()
        while True:
            now = tuple(sorted(self._endpoints()))
            if now != seen:
                seen = now
                self._news.append((time.monotonic() + self.lag_s, now))
            while self._news and self._news[0][0] <= time.monotonic():
                self.known = self._news.popleft()[1]
            await asyncio.sleep(LOOK_S)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self.known:
                raise ConnectionRefusedError("no endpoints")
            host, port = self.known[next(self._turns) % len(self.known)]
            async with asyncio.timeout(3.0):
                far_reader, far_writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            self.refused.append(f"{time.time():.3f} {error!r}, knew {self.known}")
            writer.transport.abort()  # as refused: the client may not take it for an answer
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, far_writer), name="there")
                tasks.create_task(_copy(far_reader, writer), name="back")
        finally:
            far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end; a reset on one side is one on the other."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()
    except OSError:
        writer.transport.abort()
