"""A client that reads a stream from a socket, and the listener that writes it there: what an answer
and its connection are to a request, without HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from support.fake_cluster import Heard

from protocol.messages import Token
from router.fast_path.socket_events import SocketEvents
from router.requests.token_listener import PlainListener

BEFORE, AFTER = b"data: " + b" " * 500, b"\n\n"
"""Long, so that a few of them fill a socket."""


class Streamed(Heard, PlainListener):
    """Writes by asyncio's own transport, unless what is said goes past it."""

    def __init__(self, transport: asyncio.WriteTransport, writer: socket.socket) -> None:
        super().__init__()
        self.num_passed = 0
        self.refuse_rest: Exception | None = None
        """What it says when the socket was too full."""
        self._transport = transport
        self._socket = writer
        self._give_back: Callable[[], None] | None = None

    def token(self, token: Token) -> None:
        super().token(token)
        self.write(event(token.text))

    def write(self, piece: bytes) -> None:
        self._take_back()
        self._transport.write(piece)

    def lend_socket(self, give_back: Callable[[], None]) -> SocketEvents | None:
        if self._transport.get_write_buffer_size():
            return None
        self._give_back = give_back
        return SocketEvents(
            socket=self._socket.fileno(), is_chunked=False, before=BEFORE, after=AFTER
        )

    def note_passed(self, num_tokens: int, rest: bytes) -> None:
        self.num_passed += num_tokens
        if rest and self.refuse_rest is not None:
            raise self.refuse_rest
        self._transport.write(rest)

    def end(self) -> None:
        self._take_back()
        self._transport.close()

    def _take_back(self) -> None:
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            give_back()


def event(text: str) -> bytes:
    return BEFORE + b'"%b"' % text.encode() + AFTER


def stream_of(tokens: list[int]) -> bytes:
    """As fake workers say them."""
    return b"".join(event(f"{token} ") for token in tokens)


@asynccontextmanager
async def streamed(
    *, bytes_a_turn: int = 1 << 16, buffer_bytes: int = 4096
) -> AsyncIterator[tuple[Streamed, bytearray]]:
    """A listener, and what its client has read: all, once the block is left."""
    reader, writer = socket.socketpair()
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    reader.setblocking(False)
    loop, got = asyncio.get_running_loop(), bytearray()

    async def read() -> None:
        while part := await loop.sock_recv(reader, bytes_a_turn):
            got.extend(part)
            await asyncio.sleep(0)

    transport, _ = await loop.create_connection(asyncio.Protocol, sock=writer)
    made = Streamed(transport, writer)
    with reader:
        reading = loop.create_task(read(), name="client")
        try:
            yield made, got
            made.end()
            async with asyncio.timeout(20):
                await reading
        finally:
            reading.cancel()
            if not transport.is_closing():
                transport.abort()
