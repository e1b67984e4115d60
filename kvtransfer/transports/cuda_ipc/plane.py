"""GPUs of one host: the sink opens the source's pool by its handle and copies blocks out of it.

The handle comes with the welcome over an abstract unix socket, the generations as a descriptor;
then the source only announces what lies ready. It does so once the engine's event has happened, so
the bytes are there when a copy is launched, and no stream of ours waits for a dead source's event.
"""

import socket

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.cuda_ipc.messages import NAME, cuda_ipc_setup, setup_of
from kvtransfer.transports.cuda_ipc.sink import CudaIpcSinkStream, PeerMemory
from kvtransfer.transports.cuda_ipc.source import CudaIpcSourceStream
from kvtransfer.transports.dial import Dial, pop_fd, send_welcome
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import PeerLost, TransferError, WireError


class CudaIpcListener(UnixPort):
    transport = NAME

    def __init__(self, memory: DeviceMemory, options: base.ListenOptions) -> None:
        self._memory = memory
        super().__init__(NAME, epoch=options.epoch)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        try:
            setup = cuda_ipc_setup.encode(setup_of(self._memory))
            fd = self._memory.generations_fd()
        except (TransferError, OSError) as error:
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        send_welcome(sock, welcome, setup=setup, fds=[fd])
        return CudaIpcSourceStream(sock)


def dial(memory: DeviceMemory, options: base.DialOptions) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises base.Unreachable."""

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        try:
            setup = cuda_ipc_setup.decode(welcome.setup)
        except WireError as error:
            raise base.Unreachable(f"it offers no device pool: {error}") from error
        try:
            source = PeerMemory.open(
                memory.driver, setup, pop_fd(fds),
                num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes,
            )  # fmt: skip
        except TransferError as error:
            raise base.Unreachable(str(error)) from error
        return CudaIpcSinkStream(sock, memory, source)

    return Dial(connect_to(options.address), options, transport=NAME, finish=finish)
