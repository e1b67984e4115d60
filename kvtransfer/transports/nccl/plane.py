"""NCCL between GPUs anywhere: chunks are gathered, sent, received and scattered on the devices.

A TCP socket carries the messages: how to meet, which chunk comes next, the fetch's end; its end of
file tells that the peer died. For each announced chunk the source posts a send and the sink the
matching receive, in the same order, into staging; a slot has a writer only while a received chunk
is scattered into it, so a sender that hangs keeps no slot. Neither socket nor NCCL is encrypted.
"""

import socket

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.dial import Dial, send_welcome
from kvtransfer.transports.nccl.messages import NAME, nccl_setup, setup_of, why_not
from kvtransfer.transports.nccl.sink import NcclSinkStream
from kvtransfer.transports.nccl.source import NcclSourceStream
from kvtransfer.transports.tcp_socket import TcpPort, connect_to, tune
from protocol.errors import WireError

_WITHOUT_NCCL = "the pool was made without NCCL"


class NcclListener(TcpPort):
    transport = NAME

    def __init__(self, memory: DeviceMemory, options: base.ListenOptions) -> None:
        """Raises base.Unreachable without a library, TransferError when it cannot listen."""
        if memory.collectives is None:
            raise base.Unreachable(_WITHOUT_NCCL)
        self._memory = memory
        super().__init__(options.host, options.port)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        theirs = nccl_setup.decode(hello.setup)
        send_welcome(sock, welcome, setup=nccl_setup.encode(setup_of(self._memory)))
        if why := why_not(self._memory, theirs):
            raise WireError(why)
        tune(sock)
        return NcclSourceStream(sock, self._memory, theirs)


def dial(memory: DeviceMemory, options: base.DialOptions) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    if memory.collectives is None:
        raise base.Unreachable(_WITHOUT_NCCL)
    sock = connect_to(options.address)
    setup = nccl_setup.encode(setup_of(memory))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        try:
            theirs = nccl_setup.decode(welcome.setup)
        except WireError as error:
            raise base.Unreachable(f"it is no end of a pair: {error}") from error
        if why := why_not(memory, theirs):
            raise base.Unreachable(why)
        tune(sock)
        return NcclSinkStream(sock, memory, theirs)

    return Dial(sock, options, transport=NAME, setup=setup, finish=finish)
