"""TCP between hosts: the source sends chunks scatter-gather straight from its pool, the sink
receives each straight into the slots it named.

A stream is several connections ("lanes"), all between two workers, that carry all fetches between
them; whole chunks are spread over the lanes, and a window of credit granted by the sink bounds
what is under way. Not encrypted.
"""

import logging
import socket
from functools import partial
from typing import Final

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports import base, framing
from kvtransfer.transports.dial import Dial, connect
from kvtransfer.transports.tcp.frames import Window, window
from kvtransfer.transports.tcp.sink import TcpSinkStream
from kvtransfer.transports.tcp.source import LOCAL_CHUNK_BYTES, TcpSourceStream
from kvtransfer.transports.tcp.tuning import is_local, tune, tune_listening, watch_over
from kvtransfer.transports.tcp_port import Port
from protocol.errors import WireError

log = logging.getLogger(__name__)

NAME = "tcp"
LANES: Final = 4
"""Connections of a stream between hosts: each has a congestion window of its own, and a lost
packet stops one of them. Not measured on a network; the peers' usual number."""
LOCAL_LANES: Final = 1
"""Within a host a second one costs 5 to 10 % more CPU."""
WINDOW_BYTES: Final = 64 << 20
"""A chunk for each lane and the bandwidth-delay product of 100 Gbit/s and 2.5 ms."""
_WINDOW_BLOCKS: Final = 4
"""A window holds at least as many blocks, so that one of any size is always granted."""


class TcpListener(Port):
    """The source's data port."""

    transport = NAME

    def __init__(self, memory: BlockMemory, host: str) -> None:
        """Listen on a free port of `host`. Raises TransferError when it cannot."""
        self._memory = memory
        super().__init__(host)

    def prepare(self, sock: socket.socket, host: str) -> None:
        tune_listening(sock, host)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        granted = window.decode(hello.setup).window_bytes
        if granted < LOCAL_CHUNK_BYTES:
            raise WireError(f"a window of {granted} bytes, smaller than a chunk")
        framing.send_word(sock, stream_welcome.encode(word))
        return TcpSourceStream(sock, transport=NAME, memory=self._memory.span, window=granted)


def dial(address: str, hello: StreamHello, memory: BlockMemory, *, num_lanes: int = 0) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`; without `num_lanes` with as many
    connections as suit the way there. Raises base.Unreachable."""
    granted = max(WINDOW_BYTES, _WINDOW_BLOCKS * memory.block_bytes)
    setup = window.encode(Window(window_bytes=granted))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        framing.close_fds(fds)
        tune(sock)
        num = num_lanes or (LOCAL_LANES if is_local(sock) else LANES)
        lanes = [partial(_dial_lane, address, hello, lane) for lane in range(1, num)]
        return TcpSinkStream(sock, transport=NAME, memory=memory, window=granted, lanes=lanes)

    return Dial(
        connect_to(address), transport=NAME, finish=finish,
        hello=msgspec.structs.replace(hello, setup=setup),
    )  # fmt: skip


def resolved(host: str) -> str:
    """The address of a host; of a name that nobody knows yet, the name, which sinks refuse. May
    take as long as the resolver does: for the start of a source."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.warning("a host name is not known", extra={"host": host, "why": str(error)})
        return host
    addresses = sorted(found, key=lambda each: each[0] != socket.AF_INET)
    return str(addresses[0][4][0])


def _dial_lane(address: str, hello: StreamHello, lane: int, stream: TcpSinkStream) -> Dial:
    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        framing.close_fds(fds)
        tune(sock)
        stream.admit(sock)
        return stream

    return Dial(
        connect_to(address), transport=NAME, finish=finish,
        hello=msgspec.structs.replace(hello, lane=lane),
    )  # fmt: skip


def connect_to(address: str) -> socket.socket:
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
    sock = connect(family, (str(where[0]), int(where[1])))
    watch_over(sock)
    return sock


__all__ = ["NAME", "TcpListener", "connect_to", "dial", "resolved"]
