"""TCP between hosts: the source sends chunks scatter-gather straight from its pool, the sink
receives each straight into the slots it named; to and from a device pool through staging
(`kvtransfer.transports.staged`).

A stream is several connections ("lanes"), all between two workers, that carry all fetches between
them; whole chunks are spread over the lanes, and a window of credit granted by the sink bounds
what is under way. Not encrypted.
"""

import socket
from dataclasses import replace
from functools import partial
from typing import Final

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.native.copy import HasSpan
from kvtransfer.transports import base
from kvtransfer.transports.dial import Dial, kind_of, send_welcome
from kvtransfer.transports.staged.scatters import Scatters
from kvtransfer.transports.staged.sink import STAGED_LANES, bounded, open_sink
from kvtransfer.transports.staged.source import open_source
from kvtransfer.transports.tcp.messages import MAX_LANES, NAME, TcpSetup, tcp_setup
from kvtransfer.transports.tcp.sink import TcpSinkSetup, TcpSinkStream
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
    transport = NAME

    def __init__(self, memory: BlockMemory | DeviceMemory, options: base.ListenOptions) -> None:
        """Raises TransferError when it cannot listen."""
        self._memory = memory
        super().__init__(options.host, options.port)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        setup = tcp_setup.decode(hello.setup)
        if setup.window_bytes < LOCAL_CHUNK_BYTES:
            raise WireError(f"a window of {setup.window_bytes} bytes, smaller than a chunk")

        def carry(memory: HasSpan) -> TcpSourceStream:
            send_welcome(sock, welcome)
            return TcpSourceStream(sock, memory, setup)

        if isinstance(self._memory, DeviceMemory):
            return open_source(self._memory, block_bytes=hello.block_bytes, carry=carry)
        return carry(self._memory)


def dial(memory: BlockMemory | DeviceMemory, options: base.DialOptions) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    granted = max(WINDOW_BYTES, _WINDOW_BLOCKS * memory.block_bytes)
    setup = tcp_setup.encode(TcpSetup(window_bytes=granted))
    if isinstance(memory, DeviceMemory):
        options, max_lanes = bounded(memory, options), STAGED_LANES
    else:
        max_lanes = MAX_LANES

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        tune(sock)
        num = min(max_lanes, options.tcp_lanes or (LOCAL_LANES if is_local(sock) else LANES))
        lanes = [partial(dial_lane, options, lane) for lane in range(1, num)]
        setup = TcpSinkSetup(window_bytes=granted, lanes=lanes, sum_kind=kind_of(welcome))
        if isinstance(memory, DeviceMemory):
            return open_sink(memory, partial(_land, sock, setup))
        return TcpSinkStream(sock, memory, setup)

    sock = connect_to(options.address)
    return Dial(sock, options, transport=NAME, setup=setup, finish=finish)


def _land(sock: socket.socket, setup: TcpSinkSetup, scatters: Scatters) -> base.SinkStream:
    """A stream into staging, whose bytes the device sums."""
    setup = replace(setup, sum_kind=None, has_room=scatters.has_room)
    return TcpSinkStream(sock, scatters, setup)


def dial_lane(options: base.DialOptions, lane: int, stream: TcpSinkStream) -> Dial:
    """Connect a further lane of a stream that is up. Raises base.Unreachable."""

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        tune(sock)
        stream.admit(sock)
        return stream

    return Dial(connect_to(options.address), options, transport=NAME, lane=lane, finish=finish)
