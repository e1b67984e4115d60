"""Shared memory on one host: the sink maps the source's pool and copies blocks out of it.

The descriptor of the source's pool is passed over an abstract unix socket, read-only, to processes
of the same user; that of a sink's pool, for a source that helps to copy, can be written. The
socket then carries messages, and its end tells that the peer died. Of a device pool not the pool
is shared but page-locked staging (`kvtransfer.transports.staged`).
"""

import logging
import os
import socket
from functools import partial
from typing import assert_never

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.staging import StagingRing
from kvtransfer.messages import StreamHello, StreamWelcome
from kvtransfer.transports import base
from kvtransfer.transports.dial import Dial, kind_of, pop_fd, send_welcome
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.messages import (
    HELPS,
    NAME,
    ShmSetup,
    StagingSetup,
    shm_setup,
    staging_setup,
)
from kvtransfer.transports.shm.sink import ShmSinkSetup, ShmSinkStream
from kvtransfer.transports.shm.source import Helper, ShmSourceStream
from kvtransfer.transports.shm.staged import PeerStaging, ShmCarrier
from kvtransfer.transports.staged.scatters import Scatters
from kvtransfer.transports.staged.sink import bounded, open_sink
from kvtransfer.transports.staged.source import open_source
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import LayoutMismatch, PeerLost, WireError

log = logging.getLogger(__name__)

_MIN_HELPED_CORES = 2


class ShmListener(UnixPort):
    transport = NAME

    def __init__(self, memory: BlockMemory | DeviceMemory, options: base.ListenOptions) -> None:
        self._memory = memory
        self._help_copy = options.help_copy
        super().__init__("kv", epoch=options.epoch, folder=options.socket_folder)

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        match self._memory:
            case BlockMemory() as memory:
                return self._welcome_to_pool(memory, sock, welcome, hello, fds)
            case DeviceMemory() as memory:
                carry = partial(_carry, sock, welcome)
                return open_source(memory, block_bytes=hello.block_bytes, carry=carry)
            case _:
                assert_never(self._memory)

    def _welcome_to_pool(
        self, memory: BlockMemory, sock: socket.socket, welcome: StreamWelcome,
        hello: StreamHello, fds: list[int],
    ) -> base.SourceStream:  # fmt: skip
        helper = self._helper(hello, fds)
        setup = HELPS if helper is not None else b""
        try:
            send_welcome(sock, welcome, setup=setup, fds=[memory.reader_fd()])
        except (PeerLost, OSError) as error:
            if helper is not None:
                helper.close()
            raise PeerLost(f"the pool cannot be handed on: {error}") from error
        return ShmSourceStream(sock, memory, helper)

    def _helper(self, hello: StreamHello, fds: list[int]) -> Helper | None:
        if not hello.setup or len(fds) != 2 or self._help_copy == "never":
            return None
        setup = shm_setup.decode(hello.setup)
        return Helper.open(setup, fds, when=self._help_copy)


def _carry(sock: socket.socket, welcome: StreamWelcome, ring: StagingRing) -> ShmCarrier:
    """Welcome a sink to the staging of a device pool. Raises PeerLost."""
    setup = staging_setup.encode(StagingSetup(num_bytes=ring.num_bytes))
    try:
        send_welcome(sock, welcome, setup=setup, fds=[ring.reader_fd()])
    except OSError as error:
        raise PeerLost(f"the staging cannot be handed on: {error}") from error
    return ShmCarrier(sock)


def dial(memory: BlockMemory | DeviceMemory, options: base.DialOptions) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises base.Unreachable."""
    sock = connect_to(options.address)
    if isinstance(memory, DeviceMemory):
        return Dial(sock, bounded(memory, options), transport=NAME, finish=partial(_land, memory))
    copy_job = _copy_job(memory)

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        source = map_source(welcome, fds)
        helped = copy_job if welcome.setup == HELPS else None
        if copy_job is not None and helped is None:
            copy_job.close()
        setup = ShmSinkSetup(source=source, copy_job=helped, sum_kind=kind_of(welcome))
        return ShmSinkStream(sock, memory, setup)

    if copy_job is None:
        return Dial(sock, options, transport=NAME, finish=finish)
    setup = ShmSetup(num_blocks=memory.num_blocks, block_bytes=memory.block_bytes)
    return Dial(
        sock, options, transport=NAME, finish=finish, setup=shm_setup.encode(setup),
        fds=[memory.fd, copy_job.fd], give_up=copy_job.close,
    )  # fmt: skip


def _land(
    memory: DeviceMemory, sock: socket.socket, welcome: StreamWelcome, fds: list[int]
) -> base.SinkStream:
    """A stream into a device pool. Raises base.Unreachable."""
    source = map_source(welcome, fds)

    def carry(scatters: Scatters) -> base.SinkStream:
        setup = ShmSinkSetup(source=source, sum_kind=kind_of(welcome), has_room=scatters.has_room)
        return ShmSinkStream(sock, scatters, setup)

    try:
        return open_sink(memory, carry)
    except BaseException:
        source.close()
        raise


def map_source(welcome: StreamWelcome, fds: list[int]) -> BlockMemory | PeerStaging:
    """What the source shares: its pool, or the staging of one on a device. Raises
    base.Unreachable."""
    try:
        if welcome.setup not in (b"", HELPS):
            setup = staging_setup.decode(welcome.setup)
            return PeerStaging.open(pop_fd(fds), setup)
        return BlockMemory.open(
            pop_fd(fds), num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes
        )
    except (LayoutMismatch, WireError) as error:
        raise base.Unreachable(str(error)) from error


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
