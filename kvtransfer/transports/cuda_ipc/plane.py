"""GPUs of one host: the sink opens the source's pool by its handle and copies blocks out of it.

The handle comes with the welcome over an abstract unix socket, the generations as a descriptor;
then the source only announces what lies ready. It does so once the engine's event has happened, so
the bytes are there when a copy is launched, and a dead source can leave no stream of ours waiting
for its event.
"""

import os
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
from kvtransfer.transports.cuda_ipc.messages import NAME, cuda_ipc_setup, setup_of
from kvtransfer.transports.cuda_ipc.peer_pool import PeerMemory
from kvtransfer.transports.cuda_ipc.sink import CudaIpcSinkStream
from kvtransfer.transports.cuda_ipc.source import CudaIpcSourceStream
from kvtransfer.transports.dial import Dial, pop_fd
from kvtransfer.transports.framing import send_message
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import PeerLost, TransferError, WireError


class CudaIpcListener(UnixPort):
    """The source's abstract socket."""

    transport = NAME

    def __init__(self, memory: DeviceMemory, options: ListenOptions) -> None:
        self._memory = memory
        super().__init__(NAME, epoch=options.epoch)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        try:
            setup = cuda_ipc_setup.encode(setup_of(self._memory))
            fd = self._memory.generations_fd()
        except (TransferError, OSError) as error:
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        word = msgspec.structs.replace(word, setup=setup)
        try:
            send_message(sock, stream_welcome.encode(word), [fd])
        finally:
            os.close(fd)
        return CudaIpcSourceStream(sock)


def dial(memory: DeviceMemory, options: DialOptions) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises Unreachable."""

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        try:
            setup = cuda_ipc_setup.decode(welcome.setup)
        except WireError as error:
            raise Unreachable(f"it offers no device pool: {error}") from error
        try:
            source = PeerMemory.open(
                memory.driver, setup, pop_fd(fds),
                num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes,
            )  # fmt: skip
        except TransferError as error:
            raise Unreachable(str(error)) from error
        return CudaIpcSinkStream(sock, memory, source=source)

    sock = connect_to(options.address)
    return Dial(sock, transport=NAME, hello=options.hello, finish=finish)


__all__ = ["NAME", "CudaIpcListener", "dial"]
