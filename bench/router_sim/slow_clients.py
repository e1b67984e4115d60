"""Clients that do not read as fast as is written, and those that leave in the middle."""

import asyncio
import socket

from bench.router_sim.clients import Client

RECEIVE_BYTES = 4 << 10
"""Of a slow client's socket."""
SEGMENT_BYTES = 536
"""Or the router's kernel would keep a megabyte for it, as segments of loopback are of 64 kB."""
PAUSE_S = 8.0
"""After each read: a kilobyte a second."""


class Slow(Client):
    """Reads once every `PAUSE_S` until a time of the loop. Connect it by `connect_slowly`."""

    def __init__(self, request: bytes, *, until: float) -> None:
        super().__init__(request)
        self._until = until

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        loop = asyncio.get_running_loop()
        if not self._transport.is_closing() and loop.time() < self._until:
            self._transport.pause_reading()
            loop.call_later(min(PAUSE_S, self._until - loop.time()), self._go_on)

    def _go_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


class HangingUp(Client):
    """Leaves after so many chunks."""

    def __init__(self, request: bytes, *, after: int) -> None:
        super().__init__(request)
        self._after = after

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.answer.num_chunks >= self._after:
            self._transport.abort()


async def connect_slowly(port: int, request: bytes, *, until: float) -> Slow:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    _, client = await loop.create_connection(lambda: Slow(request, until=until), sock=sock)
    return client
