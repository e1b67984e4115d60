"""TCP between hosts: the source sends chunks scatter-gather straight from its pool, the sink
receives each straight into the slots it named.

A stream is several connections ("lanes"), all between two workers, that carry all fetches between
them; whole chunks are spread over the lanes, and a window of credit granted by the sink bounds
what is under way. Not encrypted.
"""

import socket
from functools import partial
from typing import Final

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports.base import DialOptions, ListenOptions, SinkStream, SourceStream
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.framing import send_message
from kvtransfer.transports.tcp.messages import NAME, TcpSetup, tcp_setup
from kvtransfer.transports.tcp.sink import TcpSinkStream
from kvtransfer.transports.tcp.source import LOCAL_CHUNK_BYTES, TcpSourceStream
from kvtransfer.transports.tcp_socket import TcpPort, connect_to, is_local, tune
from protocol.errors import WireError

LANES: Final = 4
"""Connections of a stream between hosts: each has a congestion window of its own, and a lost
packet stops one of them. Not measured on a network; the peers' usual number."""
LOCAL_LANES: Final = 1
"""Within a host a second one costs 5 to 10 % more CPU."""
WINDOW_BYTES: Final = 64 << 20
"""A chunk for each lane and the bandwidth-delay product of 100 Gbit/s and 2.5 ms."""
_WINDOW_BLOCKS: Final = 4
"""A window holds at least as many blocks, so that one of any size is always granted."""


class TcpListener(TcpPort):
    """The source's data port."""

    transport = NAME

    def __init__(self, memory: BlockMemory, options: ListenOptions) -> None:
        """Raises TransferError when it cannot listen."""
        self._memory = memory
        super().__init__(options.host)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        granted = tcp_setup.decode(hello.setup).window_bytes
        if granted < LOCAL_CHUNK_BYTES:
            raise WireError(f"a window of {granted} bytes, smaller than a chunk")
        send_message(sock, stream_welcome.encode(word))
        return TcpSourceStream(sock, self._memory, window=granted)


def dial(memory: BlockMemory, options: DialOptions) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises Unreachable."""
    granted = max(WINDOW_BYTES, _WINDOW_BLOCKS * memory.block_bytes)
    setup = tcp_setup.encode(TcpSetup(window_bytes=granted))
    address, hello = options.address, options.hello

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        tune(sock)
        num = options.tcp_lanes or (LOCAL_LANES if is_local(sock) else LANES)
        lanes = [partial(dial_lane, address, hello, lane) for lane in range(1, num)]
        return TcpSinkStream(sock, memory, window=granted, lanes=lanes)

    hello_with_setup = msgspec.structs.replace(hello, setup=setup)
    return Dial(connect_to(address), transport=NAME, hello=hello_with_setup, finish=finish)


def dial_lane(address: str, hello: StreamHello, lane: int, stream: TcpSinkStream) -> Dial:
    """Connect a further lane of a stream that is up. Raises Unreachable."""

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        tune(sock)
        stream.admit(sock)
        return stream

    hello_of_lane = msgspec.structs.replace(hello, lane=lane)
    return Dial(connect_to(address), transport=NAME, hello=hello_of_lane, finish=finish)


__all__ = ["NAME", "TcpListener", "dial"]
