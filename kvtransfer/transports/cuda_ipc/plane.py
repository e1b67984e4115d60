"""GPUs of one host: the sink opens the source's pool by its handle and copies blocks out of it.

The pool and its generations come as descriptors with the welcome, over a unix socket; then the
source only announces what lies ready. It does so once the engine's event has happened, so the bytes
are there when a copy is launched, and no stream of ours waits for a dead source's event. The
mapping keeps the memory: a copy under way ends in order when the source dies, and checksums tell.
"""

import socket

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.cuda_ipc.messages import NAME, cuda_ipc_setup, setup_of
from kvtransfer.transports.cuda_ipc.sink import CudaIpcSinkStream, PeerMemory
from kvtransfer.transports.cuda_ipc.source import CudaIpcSourceStream
from kvtransfer.transports.dial import Dial, pop_fds, send_welcome
from kvtransfer.transports.framing import close_fds
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import PeerLost, TransferError, WireError


class CudaIpcListener(UnixPort):
    transport = NAME

    def __init__(self, memory: DeviceMemory, options: base.ListenOptions) -> None:
        self._memory = memory
        super().__init__(NAME, epoch=options.epoch, folder=options.socket_folder)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        memory, ours = self._memory, list[int]()
        try:
            ours.append(memory.generations_fd())
            exported = memory.driver.export(memory.span)
            ours.append(exported.fd)
        except (TransferError, OSError) as error:
            close_fds(ours)
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        setup = cuda_ipc_setup.encode(setup_of(memory, exported))
        send_welcome(sock, welcome, setup=setup, fds=ours)
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
                memory.driver, setup, pop_fds(fds, num=2),
                num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes,
            )  # fmt: skip
        except TransferError as error:
            raise base.Unreachable(str(error)) from error
        return CudaIpcSinkStream(sock, memory, source)

    return Dial(connect_to(options.address), options, transport=NAME, finish=finish)
