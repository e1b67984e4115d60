"""TCP between hosts: the source sends chunks scatter-gather straight from its pool, the sink
receives each straight into the slots it named.

A stream is several connections ("lanes"), all between two workers, that carry all fetches between
them; whole chunks are spread over the lanes, and a window of credit granted by the sink bounds
what is under way. Called by `kvtransfer.source` (listens) and `kvtransfer.link` (dials). Not
encrypted.
"""

import socket
from functools import partial
from typing import Final

import msgspec

from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.pool import BlockMemory
from kvtransfer.transports import base
from kvtransfer.transports.tcp_frames import Window, window
from kvtransfer.transports.tcp_sink import TcpSinkStream
from kvtransfer.transports.tcp_source import CHUNK_BYTES, TcpSourceStream
from kvtransfer.transports.tcp_tuning import tune, tune_listening, watch_over
from protocol.errors import TransferError, WireError

NAME = "tcp"
LANES: Final = 2
"""Connections a stream. One keeps two cores busy on loopback, a second hides a lane's gaps."""
WINDOW_BYTES: Final = 64 << 20
"""A chunk for each lane and the bandwidth-delay product of 100 Gbit/s and 2.5 ms."""
_WINDOW_BLOCKS: Final = 4
"""A window holds at least as many blocks, so that one of any size is always granted."""
_BACKLOG = 128


class TcpListener:
    """The source's data port."""

    transport = NAME

    def __init__(self, memory: BlockMemory, host: str) -> None:
        """Listen on a free port of `host`. Raises TransferError when it cannot."""
        self._memory = memory
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            tune_listening(self._sock, host)
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
        granted = window.decode(hello.setup).window_bytes
        if granted < CHUNK_BYTES:
            raise WireError(f"a window of {granted} bytes, smaller than a chunk")
        base.send_word(sock, stream_welcome.encode(word))
        return TcpSourceStream(sock, transport=NAME, memory=self._memory.span, window=granted)

    def close(self) -> None:
        self._sock.close()


def dial(
    address: str, hello: StreamHello, memory: BlockMemory, *, num_lanes: int = LANES
) -> base.Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    granted = max(WINDOW_BYTES, _WINDOW_BLOCKS * memory.block_bytes)
    setup = window.encode(Window(window_bytes=granted))
    lanes = [partial(_dial_lane, address, hello, lane) for lane in range(1, num_lanes)]

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        base.close_fds(fds)
        tune(sock)
        return TcpSinkStream(sock, transport=NAME, memory=memory, window=granted, lanes=lanes)

    return base.Dial(
        _connect(address), transport=NAME, finish=finish,
        hello=msgspec.structs.replace(hello, setup=setup),
    )  # fmt: skip


def _dial_lane(address: str, hello: StreamHello, lane: int, stream: TcpSinkStream) -> base.Dial:
    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        base.close_fds(fds)
        tune(sock)
        stream.admit(sock)
        return stream

    return base.Dial(
        _connect(address), transport=NAME, finish=finish,
        hello=msgspec.structs.replace(hello, lane=lane),
    )  # fmt: skip


def _connect(address: str) -> socket.socket:
    """A socket that has begun to connect to `host:port`. The host is an address: looking a name
    up can take many seconds, and this is the thread that renews the leases."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError) as error:
        why = f"{address!r} is no IP address and port: let the source advertise one"
        raise base.Unreachable(why) from error
    family, _, _, _, where = found[0]
    sock = base.connect(family, (str(where[0]), int(where[1])))
    watch_over(sock)
    return sock


__all__ = ["LANES", "NAME", "TcpListener", "dial"]
