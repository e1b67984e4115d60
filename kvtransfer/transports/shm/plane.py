"""Shared memory on one host: the sink maps the source's pool and copies blocks out of it.

The descriptor of the source's pool is passed over an abstract unix socket, read-only, to processes
of the same user; that of a sink's pool, for a source that helps to copy, can be written. The
socket then carries messages, and its end tells that the peer died. Does not work across hosts or
network namespaces, and says so at once.
"""

import logging
import os
import socket

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import StreamHello, StreamWelcome, stream_welcome
from kvtransfer.transports.base import (
    DialOptions,
    ListenOptions,
    SinkStream,
    SourceStream,
    Unreachable,
)
from kvtransfer.transports.dial import Dial, pop_fd
from kvtransfer.transports.framing import send_message
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.helper import Helper
from kvtransfer.transports.shm.messages import HELPS, NAME, ShmSetup, shm_setup
from kvtransfer.transports.shm.sink import ShmSinkStream
from kvtransfer.transports.shm.source import ShmSourceStream
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import LayoutMismatch, PeerLost

log = logging.getLogger(__name__)

_MIN_HELPED_CORES = 2


class ShmListener(UnixPort):
    """The source's abstract socket."""

    transport = NAME

    def __init__(self, memory: BlockMemory, options: ListenOptions) -> None:
        self._memory = memory
        self._help_copy = options.help_copy
        super().__init__("kv", epoch=options.epoch)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        helper = self._helper(hello, fds)
        if helper is not None:
            word = msgspec.structs.replace(word, setup=HELPS)
        try:
            self._send_pool(sock, word)
        except PeerLost:
            if helper is not None:
                helper.close()
            raise
        return ShmSourceStream(sock, helper=helper)

    def _send_pool(self, sock: socket.socket, word: StreamWelcome) -> None:
        try:
            fd = self._memory.reader_fd()
        except OSError as error:
            raise PeerLost(f"no descriptor of the pool to give: {error}") from error
        try:
            send_message(sock, stream_welcome.encode(word), [fd])
        finally:
            os.close(fd)

    def _helper(self, hello: StreamHello, fds: list[int]) -> Helper | None:
        if not hello.setup or len(fds) != 2 or self._help_copy == "never":
            return None
        setup = shm_setup.decode(hello.setup)
        return Helper.open(setup, fds, source=self._memory, when=self._help_copy)


def dial(memory: BlockMemory, options: DialOptions) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises Unreachable."""
    sock, hello = connect_to(options.address), options.hello
    copy_job = _copy_job(memory)
    fds = [] if copy_job is None else [memory.fd, copy_job.fd]
    if copy_job is not None:
        setup = ShmSetup(num_blocks=memory.num_blocks, block_bytes=memory.block_bytes)
        hello = msgspec.structs.replace(hello, setup=shm_setup.encode(setup))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> SinkStream:
        try:
            source = BlockMemory.open(
                pop_fd(fds), num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes
            )
        except LayoutMismatch as error:
            raise Unreachable(str(error)) from error
        helped = copy_job if welcome.setup == HELPS else None
        if copy_job is not None and helped is None:
            copy_job.close()
        return ShmSinkStream(sock, memory, source=source, copy_job=helped)

    give_up = copy_job.close if copy_job is not None else lambda: None
    return Dial(sock, transport=NAME, hello=hello, finish=finish, fds=fds, give_up=give_up)


def _copy_job(memory: BlockMemory) -> CopyJob | None:
    """Where our pool may be written by a helper, and there are cores for one: a copy job."""
    if not memory.helped or len(os.sched_getaffinity(0)) < _MIN_HELPED_CORES:
        return None
    try:
        return CopyJob.create()
    except OSError as error:
        log.warning("no copy job, we copy alone", extra={"why": str(error)})
        return None


__all__ = ["NAME", "ShmListener", "dial"]
