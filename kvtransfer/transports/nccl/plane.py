"""NCCL between GPUs anywhere: chunks are gathered, sent, received and scattered on the devices.

A TCP socket carries the messages: how to meet, which chunk comes next, the fetch's end; its end of
file tells that the peer died. For each announced chunk the source posts a send and the sink the
matching receive, in the same order, into staging; a slot has a writer only while a received chunk
is scattered into it, so a sender that hangs keeps no slot. The socket is not encrypted, nor is
NCCL.
"""

import socket

import msgspec

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports.base import (
    DialOptions,
    ListenOptions,
    SinkStream,
    SourceStream,
    Unreachable,
)
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.framing import send_message
from kvtransfer.transports.nccl.messages import NAME, nccl_setup, setup_of, why_not
from kvtransfer.transports.nccl.sink import NcclSinkStream
from kvtransfer.transports.nccl.source import NcclSourceStream
from kvtransfer.transports.tcp_socket import TcpPort, connect_to, tune
from protocol.errors import WireError

_WITHOUT_NCCL = "the pool was made without NCCL"


class NcclListener(TcpPort):
    """The source's port for the messages of its pairs."""

    transport = NAME

    def __init__(self, memory: DeviceMemory, options: ListenOptions) -> None:
        """Raises Unreachable without a library, TransferError when it cannot listen."""
        if memory.collectives is None:
            raise Unreachable(_WITHOUT_NCCL)
        self._memory = memory
        super().__init__(options.host)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        theirs = nccl_setup.decode(hello.setup)
        word = msgspec.structs.replace(word, setup=nccl_setup.encode(setup_of(self._memory)))
        send_message(sock, stream_welcome.encode(word))
        if why := why_not(self._memory, theirs):
            raise WireError(why)
        tune(sock)
        return NcclSourceStream(sock, self._memory, theirs=theirs)


def dial(memory: DeviceMemory, options: DialOptions) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises Unreachable."""
    if memory.collectives is None:
        raise Unreachable(_WITHOUT_NCCL)
    sock = connect_to(options.address)
    hello = msgspec.structs.replace(options.hello, setup=nccl_setup.encode(setup_of(memory)))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        try:
            theirs = nccl_setup.decode(welcome.setup)
        except WireError as error:
            raise Unreachable(f"it is no end of a pair: {error}") from error
        if why := why_not(memory, theirs):
            raise Unreachable(why)
        tune(sock)
        return NcclSinkStream(sock, memory, theirs=theirs)

    return Dial(sock, transport=NAME, hello=hello, finish=finish)


__all__ = ["NAME", "NcclListener", "dial"]
