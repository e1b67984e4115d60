"""Shared memory on one host: the sink maps the source's pool and copies blocks out of it.

The descriptor of the pool is passed over an abstract unix socket, read-only, to processes of the
same user. The socket then stays open and carries nothing: its end tells that the peer died.
Called by `kvtransfer.source` and `kvtransfer.link`. Does not work across hosts or network
namespaces, and says so at once.
"""

import os
import secrets
import socket
import struct

from kvtransfer.messages import FetchId, StreamHello, StreamWelcome, stream_welcome
from kvtransfer.pool import BlockMemory
from kvtransfer.transports import base
from protocol.errors import LayoutMismatch, PeerLost, WireError
from protocol.ids import Epoch

NAME = "shm"
_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_LENGTH = struct.Struct("<I")


class ShmListener:
    """The source's abstract socket."""

    transport = NAME

    def __init__(self, memory: BlockMemory, *, epoch: Epoch) -> None:
        self.address = f"baton-kv-{epoch:x}-{secrets.token_hex(4)}"
        self._memory = memory
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.bind("\0" + self.address)
        self._sock.listen(_BACKLOG)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        sock = base.accept_from(self._sock)
        if sock is not None and not _same_user(sock):
            sock.close()
            return None
        return sock

    def welcome(self, sock: socket.socket, word: StreamWelcome) -> base.SourceStream:
        packed = stream_welcome.encode(word)
        packed = _LENGTH.pack(len(packed)) + packed
        try:
            fd = self._memory.reader_fd()
        except OSError as error:
            raise PeerLost(f"no descriptor of the pool to give: {error}") from error
        try:
            sent = socket.send_fds(sock, [packed], [fd])
        except OSError as error:
            raise PeerLost(f"the stream broke: {error}") from error
        finally:
            os.close(fd)
        if sent != len(packed):
            raise PeerLost(f"a fresh stream took {sent} of {len(packed)} bytes")
        return QuietStream(sock, NAME)

    def close(self) -> None:
        self._sock.close()


def dial(address: str, hello: StreamHello) -> base.Dial:
    """Connect to a source of this host. Raises base.Unreachable."""
    if not address:
        raise base.Unreachable("the source offers no shared memory")
    sock = base.connect(socket.AF_UNIX, "\0" + address)
    if not _same_user(sock):
        sock.close()
        raise base.Unreachable("the socket belongs to another user")
    return base.Dial(sock, transport=NAME, hello=hello, finish=_finish)


def _finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
    if len(fds) != 1:
        base.close_fds(fds)
        raise base.Unreachable(f"{len(fds)} descriptors came with the welcome")
    try:
        memory = BlockMemory.open(
            fds.pop(), num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes
        )
    except LayoutMismatch as error:
        raise base.Unreachable(str(error)) from error
    return ReadingStream(sock, NAME, memory)


def _same_user(sock: socket.socket) -> bool:
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(packed)
    return bool(uid == os.geteuid())


class ReadingStream:
    """The sink's end of a stream whose blocks it copies itself."""

    def __init__(self, sock: socket.socket, transport: str, memory: BlockMemory) -> None:
        self.transport = transport
        self.memory: BlockMemory | None = memory
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, taker: base.FrameTaker) -> None:
        base.end_of(self._sock)

    def stop_writing(self, fetch: FetchId) -> None:
        """Only the calling thread writes, and it is here."""

    def close(self) -> None:
        self._sock.close()
        if self.memory is not None:
            self.memory.close()
            self.memory = None


class QuietStream:
    """The source's end of a stream that carries no blocks."""

    pushes = False
    queued_bytes = 0

    def __init__(self, sock: socket.socket, transport: str) -> None:
        self.transport = transport
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> None:
        base.end_of(self._sock)

    def push(
        self, fetch: FetchId, attempt: int, slot_block: int, block: object, body: memoryview
    ) -> None:
        raise WireError(f"{self.transport} carries no frames")

    def flush(self) -> None:
        """Nothing is ever queued."""

    def drop(self, fetch: FetchId) -> None:
        """Nothing is read from the pool by this process."""

    def close(self) -> None:
        self._sock.close()
