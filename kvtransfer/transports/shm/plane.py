"""Shared memory on one host: the sink maps the source's pool and copies blocks out of it.

The descriptor of the source's pool is passed over an abstract unix socket, read-only, to processes
of the same user; that of a sink's pool, for a source that helps to copy, can be written. The
socket then carries messages, and its end tells that the peer died.
"""

import logging
import os
import socket

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.dial import Dial, pop_fd, send_welcome
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.messages import HELPS, NAME, ShmSetup, shm_setup
from kvtransfer.transports.shm.sink import ShmSinkSetup, ShmSinkStream
from kvtransfer.transports.shm.source import Helper, ShmSourceStream
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import LayoutMismatch, PeerLost

log = logging.getLogger(__name__)

_MIN_HELPED_CORES = 2


class ShmListener(UnixPort):
    transport = NAME

    def __init__(self, memory: BlockMemory, options: base.ListenOptions) -> None:
        self._memory = memory
        self._help_copy = options.help_copy
        super().__init__("kv", epoch=options.epoch)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        helper = self._helper(hello, fds)
        setup = HELPS if helper is not None else b""
        try:
            send_welcome(sock, welcome, setup=setup, fds=[self._memory.reader_fd()])
        except (PeerLost, OSError) as error:
            if helper is not None:
                helper.close()
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        return ShmSourceStream(sock, self._memory, helper)

    def _helper(self, hello: StreamHello, fds: list[int]) -> Helper | None:
        if not hello.setup or len(fds) != 2 or self._help_copy == "never":
            return None
        setup = shm_setup.decode(hello.setup)
        return Helper.open(setup, fds, when=self._help_copy)


def dial(memory: BlockMemory, options: base.DialOptions) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises base.Unreachable."""
    sock = connect_to(options.address)
    copy_job = _copy_job(memory)

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        try:
            source = BlockMemory.open(
                pop_fd(fds), num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes
            )
        except LayoutMismatch as error:
            raise base.Unreachable(str(error)) from error
        helped = copy_job if welcome.setup == HELPS else None
        if copy_job is not None and helped is None:
            copy_job.close()
        return ShmSinkStream(sock, memory, ShmSinkSetup(source=source, copy_job=helped))

    if copy_job is None:
        return Dial(sock, options, transport=NAME, finish=finish)
    setup = ShmSetup(num_blocks=memory.num_blocks, block_bytes=memory.block_bytes)
    return Dial(
        sock, options, transport=NAME, finish=finish, setup=shm_setup.encode(setup),
        fds=[memory.fd, copy_job.fd], give_up=copy_job.close,
    )  # fmt: skip


def _copy_job(memory: BlockMemory) -> CopyJob | None:
    """Where our pool may be written by a helper, and there are cores for one: a copy job."""
    if not memory.helped or len(os.sched_getaffinity(0)) < _MIN_HELPED_CORES:
        return None
    try:
        return CopyJob.create()
    except OSError as error:
        log.warning(
            "no copy job, the sink copies alone: raise the limit of open files",
            extra={"why": str(error)},
        )
        return None
