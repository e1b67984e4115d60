"""TCP between hosts: the source sends blocks scatter-gather straight from its pool, the sink
receives each straight into the slot it named.

One connection carries all fetches between two workers. Every block has a header that says which
fetch, attempt, slot and tokens it is, and its checksum; a header that makes no sense ends the
stream, because nothing after it can be trusted. Called by `kvtransfer.source` and
`kvtransfer.link`. Not encrypted.
"""

import socket
import struct
from collections import deque

import xxhash

from kvtransfer.messages import Descriptor, FetchId, StreamHello, StreamWelcome, stream_welcome
from kvtransfer.pool import BlockMemory
from kvtransfer.transports import base
from protocol.errors import PeerLost, TransferError, WireError

NAME = "tcp"
_BACKLOG = 128
_MAGIC = b"BKV1"
_FIELDS = struct.Struct("<4sIQIIIIIQQQ")
"""magic, attempt, fetch, slot's block, index, source block, token start, token count, bytes,
generation, checksum."""
_SEAL = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _SEAL.size
_FRAMES_PER_SEND = 64
"""128 buffers a call; the kernel takes 1,024."""
_TURN_BYTES = 8 << 20
_SCRATCH_BYTES = 256 << 10
_SILENCE_MS = 6_000
"""A peer that acknowledges nothing for this long is gone; as long as a lease."""


def pack_header(fetch: FetchId, attempt: int, slot_block: int, block: Descriptor) -> bytes:
    fields = _FIELDS.pack(
        _MAGIC, attempt, fetch, slot_block, block.index, block.block_id, block.token_start,
        block.token_count, block.num_bytes, block.generation, block.checksum,
    )  # fmt: skip
    return fields + _SEAL.pack(xxhash.xxh3_64_intdigest(fields))


def unpack_header(packed: memoryview) -> tuple[FetchId, int, int, Descriptor]:
    """Fetch, attempt, slot's block, and the block. Raises WireError."""
    fields = packed[: _FIELDS.size]
    (seal,) = _SEAL.unpack(packed[_FIELDS.size :])
    magic, attempt, fetch, slot_block, *rest = _FIELDS.unpack(fields)
    if magic != _MAGIC or seal != xxhash.xxh3_64_intdigest(fields):
        raise WireError("a frame header is broken")
    index, block_id, token_start, token_count, num_bytes, generation, checksum = rest
    block = Descriptor(
        index=index, block_id=block_id, token_start=token_start, token_count=token_count,
        num_bytes=num_bytes, generation=generation, checksum=checksum,
    )  # fmt: skip
    return FetchId(fetch), attempt, slot_block, block


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)


class TcpListener:
    """The source's data port."""

    transport = NAME

    def __init__(self, host: str) -> None:
        """Listen on a free port of `host`. Raises TransferError when it cannot."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._sock.bind((host, 0))
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise TransferError(f"cannot listen on {host}: {error}") from error
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        return base.accept_from(self._sock)

    def welcome(self, sock: socket.socket, word: StreamWelcome) -> base.SourceStream:
        base.send_word(sock, stream_welcome.encode(word))
        _tune(sock)
        return TcpSourceStream(sock)

    def close(self) -> None:
        self._sock.close()


def dial(host: str, port: int, hello: StreamHello) -> base.Dial:
    """Connect to a source anywhere. Raises base.Unreachable."""
    if not port:
        raise base.Unreachable("the source does not serve tcp")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = base.connect(family, (host, port))
    return base.Dial(sock, transport=NAME, hello=hello, finish=_finish)


def _finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
    base.close_fds(fds)
    _tune(sock)
    return TcpSinkStream(sock, block_bytes=welcome.block_bytes)


class _Frame:
    """One block on its way out."""

    __slots__ = ("body", "fetch", "header", "sent")

    def __init__(self, fetch: FetchId, header: bytes, body: memoryview) -> None:
        self.fetch = fetch
        self.header = header
        self.body = body
        self.sent = 0

    @property
    def left(self) -> int:
        return len(self.header) + len(self.body) - self.sent

    def buffers(self) -> list[memoryview]:
        if self.sent >= len(self.header):
            return [self.body[self.sent - len(self.header) :]]
        return [memoryview(self.header)[self.sent :], self.body]


class TcpSourceStream:
    def __init__(self, sock: socket.socket) -> None:
        self.transport = NAME
        self.pushes = True
        self.queued_bytes = 0
        self._sock = sock
        self._frames: deque[_Frame] = deque()

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> None:
        base.end_of(self._sock)

    def push(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor, body: memoryview
    ) -> None:
        frame = _Frame(fetch, pack_header(fetch, attempt, slot_block, block), body)
        self._frames.append(frame)
        self.queued_bytes += frame.left

    def flush(self) -> None:
        while self._frames:
            frames = [self._frames[i] for i in range(min(_FRAMES_PER_SEND, len(self._frames)))]
            buffers = [buffer for frame in frames for buffer in frame.buffers()]
            try:
                sent = self._sock.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            self._count(sent)

    def drop(self, fetch: FetchId) -> None:
        """A frame already begun goes on as zeros: its length was promised, its bytes were not,
        and its checksum tells."""
        kept: deque[_Frame] = deque()
        for frame in self._frames:
            if frame.fetch != fetch:
                kept.append(frame)
            elif frame.sent:
                frame.body = memoryview(bytes(len(frame.body)))
                kept.append(frame)
            else:
                self.queued_bytes -= frame.left
        self._frames = kept

    def close(self) -> None:
        self._frames.clear()
        self._sock.close()

    def _count(self, sent: int) -> None:
        self.queued_bytes -= sent
        while sent:
            frame = self._frames[0]
            taken = min(sent, frame.left)
            frame.sent += taken
            sent -= taken
            if not frame.left:
                self._frames.popleft()


class TcpSinkStream:
    def __init__(self, sock: socket.socket, *, block_bytes: int) -> None:
        self.transport = NAME
        self.memory: BlockMemory | None = None
        self._sock = sock
        self._block_bytes = block_bytes
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._scratch = memoryview(bytearray(min(_SCRATCH_BYTES, block_bytes)))
        self._num_header = 0
        self._frame: tuple[FetchId, Descriptor] | None = None
        self._slot: memoryview | None = None
        """Where the current frame goes; None: nowhere."""
        self._num_body = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, taker: base.FrameTaker) -> None:
        budget = _TURN_BYTES
        while budget > 0:
            count = self._body(taker) if self._frame else self._head(taker)
            if not count:
                return
            budget -= count

    def stop_writing(self, fetch: FetchId) -> None:
        if self._frame is not None and self._frame[0] == fetch:
            self._slot = None

    def close(self) -> None:
        self._slot = None
        self._sock.close()

    def _head(self, taker: base.FrameTaker) -> int:
        count = self._recv(self._header[self._num_header :])
        self._num_header += count
        if self._num_header == HEADER_BYTES:
            self._num_header = 0
            fetch, attempt, slot_block, block = unpack_header(self._header)
            if block.num_bytes != self._block_bytes:
                raise WireError(f"a frame of {block.num_bytes} bytes, not {self._block_bytes}")
            self._slot = taker.begin_frame(fetch, attempt, slot_block, block)
            self._frame = (fetch, block)
            self._num_body = 0
        return count

    def _body(self, taker: base.FrameTaker) -> int:
        assert self._frame is not None
        left = self._block_bytes - self._num_body
        into = self._scratch[:left] if self._slot is None else self._slot[self._num_body :]
        count = self._recv(into)
        self._num_body += count
        if self._num_body == self._block_bytes:
            (fetch, block), self._frame = self._frame, None
            slot, self._slot = self._slot, None
            if slot is not None:
                taker.end_frame(fetch, block)
        return count

    def _recv(self, into: memoryview) -> int:
        try:
            count = self._sock.recv_into(into)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise PeerLost(f"the stream broke: {error}") from error
        if not count:
            raise PeerLost("the other process closed its stream")
        return count
