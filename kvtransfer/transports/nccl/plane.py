"""NCCL between GPUs anywhere: chunks are gathered, sent, received and scattered on the devices.

A TCP socket carries the words: how to meet, which chunk comes next, the fetch's end; its end of
file tells that the peer died. For each announced chunk the source posts a send and the sink the
matching receive, in the same order, into staging; a slot has a writer only while a received chunk
is scattered into it, so a sender that hangs keeps no slot. The socket is not encrypted, nor is
NCCL.
"""

import socket

import msgspec

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports import base, framing
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.nccl.messages import NAME, rank_of, rank_word, why_not
from kvtransfer.transports.nccl.sink import NcclSinkStream
from kvtransfer.transports.nccl.source import NcclSourceStream
from kvtransfer.transports.tcp.plane import connect_to
from kvtransfer.transports.tcp.tuning import tune
from kvtransfer.transports.tcp_port import Port
from protocol.errors import WireError


class NcclListener(Port):
    """The source's port for the words of its pairs."""

    transport = NAME

    def __init__(self, memory: DeviceMemory, host: str) -> None:
        """Listen on a free port of `host`. Raises Unreachable without a library, TransferError
        when it cannot listen."""
        if memory.collectives is None:
            raise base.Unreachable("the pool was made without NCCL")
        self._memory = memory
        super().__init__(host)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        theirs = rank_word.decode(hello.setup)
        word = msgspec.structs.replace(word, setup=rank_word.encode(rank_of(self._memory)))
        framing.send_word(sock, stream_welcome.encode(word))
        if why := why_not(self._memory, theirs):
            raise WireError(why)
        tune(sock)
        return NcclSourceStream(sock, self._memory, theirs)


def dial(address: str, hello: StreamHello, memory: DeviceMemory) -> Dial:
    """Connect to a source anywhere, to fetch into `memory`. Raises base.Unreachable."""
    if memory.collectives is None:
        raise base.Unreachable("the pool was made without NCCL")
    sock = connect_to(address)
    hello = msgspec.structs.replace(hello, setup=rank_word.encode(rank_of(memory)))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        framing.close_fds(fds)
        try:
            theirs = rank_word.decode(welcome.setup)
        except WireError as error:
            raise base.Unreachable(f"it is no end of a pair: {error}") from error
        if why := why_not(memory, theirs):
            raise base.Unreachable(why)
        tune(sock)
        return NcclSinkStream(sock, memory, theirs)

    return Dial(sock, transport=NAME, hello=hello, finish=finish)


__all__ = ["NAME", "NcclListener", "dial"]
