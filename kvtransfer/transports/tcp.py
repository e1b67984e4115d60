"""TCP between hosts: the source sends pieces scatter-gather straight from its pool, the sink
receives each straight into its slot.

One connection carries all fetches between two workers: a word that describes a chunk, then its
bytes. A word that makes no sense ends the stream, because nothing after it can be trusted. Called
by `kvtransfer.source` and `kvtransfer.link`. Not encrypted.
"""

import socket
import struct
from collections import deque

from kvtransfer.chunk import Landing
from kvtransfer.messages import (
    MAX_WORD_BYTES,
    Chunk,
    FetchId,
    Finish,
    StreamHello,
    StreamWelcome,
    stream_welcome,
    stream_word,
)
from kvtransfer.plan import Ranges
from kvtransfer.pool import BlockMemory
from kvtransfer.transports import base
from protocol.errors import PeerLost, TransferError, WireError

NAME = "tcp"
CHUNK_BYTES = 1 << 20
_BACKLOG = 128
_BUFFERS = 256
_LENGTH = struct.Struct("<IQ")
"""Bytes of the word, bytes after it."""
_TURN_BYTES = 8 << 20
_SCRATCH_BYTES = 256 << 10
_SILENCE_MS = 6_000
"""A peer that acknowledges nothing for this long is gone; as long as a lease."""


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)


class TcpListener:
    """The source's data port."""

    transport = NAME

    def __init__(self, memory: BlockMemory, host: str) -> None:
        """Listen on a free port of `host`. Raises TransferError when it cannot."""
        self._memory = memory
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._sock.bind((host, 0))
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            raise TransferError(f"cannot listen on {host}: {error}") from error
        self._sock.setblocking(False)
        self.address = f"*:{self._sock.getsockname()[1]}"

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        return base.accept_from(self._sock)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        base.send_word(sock, stream_welcome.encode(word))
        _tune(sock)
        return TcpSourceStream(sock, self._memory)

    def close(self) -> None:
        self._sock.close()


def dial(address: str, hello: StreamHello, memory: BlockMemory) -> base.Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = base.connect(family, (host, int(port)))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        base.close_fds(fds)
        _tune(sock)
        return TcpSinkStream(sock, memory)

    return base.Dial(sock, transport=NAME, hello=hello, finish=finish)


class _Frame:
    """One word on its way out, and the bytes that follow it."""

    __slots__ = ("buffers", "fetch", "left", "sent")

    def __init__(self, fetch: int, buffers: list[memoryview]) -> None:
        self.fetch = fetch
        self.buffers = buffers
        self.left = sum(map(len, buffers))
        self.sent = 0


class TcpSourceStream:
    chunk_bytes = CHUNK_BYTES

    def __init__(self, sock: socket.socket, memory: BlockMemory) -> None:
        self.transport = NAME
        self._memory = memory
        self._sock = sock
        self._frames: deque[_Frame] = deque()
        self._queued_bytes = 0

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    @property
    def awaits_room(self) -> bool:
        return bool(self._frames)

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> None:
        base.end_of(self._sock)

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        raise WireError("one socket")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        blocks = self._memory.blocks
        pairs = zip(ranges.offsets_R.tolist(), ranges.sizes_R.tolist(), strict=True)
        self._put(chunk, [blocks[offset : offset + size] for offset, size in pairs])

    def finish(self, word: Finish) -> None:
        self._put(word, [])

    def _put(self, word: Chunk | Finish, body: list[memoryview]) -> None:
        packed = stream_word.encode(word)
        head = _LENGTH.pack(len(packed), sum(map(len, body))) + packed
        frame = _Frame(word.fetch, [memoryview(head), *body])
        self._frames.append(frame)
        self._queued_bytes += frame.left

    def flush(self) -> None:
        while self._frames:
            frame = self._frames[0]
            try:
                sent = self._sock.sendmsg(frame.buffers[:_BUFFERS])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            self._count(frame, sent)

    def drop(self, fetch: FetchId) -> None:
        """A frame already begun goes on as zeros: its length was promised, its bytes were not."""
        kept: deque[_Frame] = deque()
        for frame in self._frames:
            if frame.fetch != fetch:
                kept.append(frame)
            elif frame.sent:
                frame.buffers = [memoryview(bytes(len(each))) for each in frame.buffers]
                kept.append(frame)
            else:
                self._queued_bytes -= frame.left
        self._frames = kept

    def close(self) -> None:
        self._frames.clear()
        self._sock.close()

    def _count(self, frame: _Frame, sent: int) -> None:
        self._queued_bytes -= sent
        frame.left -= sent
        frame.sent += sent
        done = 0
        while done < len(frame.buffers) and sent >= len(frame.buffers[done]):
            sent -= len(frame.buffers[done])
            done += 1
        del frame.buffers[:done]
        if sent:
            frame.buffers[0] = frame.buffers[0][sent:]
        if not frame.buffers:
            self._frames.popleft()


class TcpSinkStream:
    def __init__(self, sock: socket.socket, memory: BlockMemory) -> None:
        self.transport = NAME
        self._sock = sock
        self._memory = memory
        self._head = bytearray()
        self._landing: Landing | None = None
        self._into: list[memoryview] = []
        self._num_waste = 0
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, taker: base.ChunkTaker) -> bool:
        budget = _TURN_BYTES
        while budget > 0:
            if self._into:
                count = self._body(taker)
            elif self._num_waste:
                count = self._recv([self._scratch[: self._num_waste]])
                self._num_waste -= count
            else:
                count = self._word(taker)
            if not count:
                return False
            budget -= count
        return True

    def stop_writing(self, fetch: FetchId) -> bool:
        if self._landing is not None and self._landing.fetch == fetch:
            self._num_waste = sum(map(len, self._into))
            self._into, self._landing = [], None
        return True

    def close(self) -> bool:
        self._into, self._landing = [], None
        self._sock.close()
        return True

    def _word(self, taker: base.ChunkTaker) -> int:
        due = _LENGTH.size
        if len(self._head) >= due:
            length, _ = _LENGTH.unpack_from(self._head)
            if length > MAX_WORD_BYTES:
                raise WireError(f"a word of {length} bytes")
            due += length
        buffer = bytearray(due - len(self._head))
        count = self._recv([memoryview(buffer)])
        self._head += buffer[:count]
        if len(self._head) == due > _LENGTH.size:
            _, num_bytes = _LENGTH.unpack_from(self._head)
            word = stream_word.decode(bytes(self._head[_LENGTH.size :]))
            self._head.clear()
            self._begin(word, num_bytes, taker)
        return count

    def _begin(self, word: object, num_bytes: int, taker: base.ChunkTaker) -> None:
        match word:
            case Chunk():
                landing = taker.begin_chunk(word)
                if landing is None:
                    self._num_waste = num_bytes
                elif landing.num_bytes != num_bytes:
                    raise WireError(f"{num_bytes} bytes for a chunk of {landing.num_bytes}")
                else:
                    self._landing = landing
                    self._into = self._views(landing.target)
            case Finish():
                taker.finished(word)
            case _:
                raise WireError("a word that tcp has no use for")

    def _views(self, ranges: Ranges) -> list[memoryview]:
        pairs = zip(ranges.offsets_R.tolist(), ranges.sizes_R.tolist(), strict=True)
        blocks = self._memory.blocks
        return [blocks[offset : offset + size] for offset, size in pairs]

    def _body(self, taker: base.ChunkTaker) -> int:
        count = left = self._recv(self._into[:_BUFFERS])
        done = 0
        while done < len(self._into) and left >= len(self._into[done]):
            left -= len(self._into[done])
            done += 1
        del self._into[:done]
        if left:
            self._into[0] = self._into[0][left:]
        if not self._into and self._landing is not None:
            landing, self._landing = self._landing, None
            taker.end_chunk(landing, self._memory.checksums(landing.target))
        return count

    def _recv(self, into: list[memoryview]) -> int:
        try:
            count = self._sock.recvmsg_into(into)[0]
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise PeerLost(f"the stream broke: {error}") from error
        if not count:
            raise PeerLost("the other process closed its stream")
        return count
