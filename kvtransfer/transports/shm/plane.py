"""Shared memory on one host: the sink maps the source's pool and copies blocks out of it.

The descriptor of the source's pool is passed over an abstract unix socket, read-only, to processes
of the same user; that of a sink's pool, for a source that helps to copy, can be written. The
socket then carries words, and its end tells that the peer died. Does not work across hosts or
network namespaces, and says so at once.
"""

import logging
import os
import socket

import msgspec

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    HelpOffer,
    StreamHello,
    StreamWelcome,
    help_offer,
    stream_welcome,
)
from kvtransfer.transports import base, framing
from kvtransfer.transports import unix_socket as local
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.shm.copy_job import Board
from kvtransfer.transports.shm.helper import HelpCopy, Helper
from kvtransfer.transports.shm.streams import AnnouncingStream, ReadingStream
from protocol.errors import LayoutMismatch, PeerLost
from protocol.ids import Epoch

log = logging.getLogger(__name__)

NAME = "shm"
_MIN_HELPED_CORES = 2
_HELPS = b"helps"
"""In a welcome's setup: the source copies along when it is told to and has time."""


class ShmListener(local.LocalSocket):
    """The source's abstract socket."""

    transport = NAME

    def __init__(self, memory: BlockMemory, *, epoch: Epoch, help_copy: HelpCopy = "auto") -> None:
        self._help_copy = help_copy
        self._memory = memory
        super().__init__("kv", epoch=epoch)

    def welcome(
        self, sock: socket.socket, word: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> base.SourceStream:
        helper = self._helper(hello, fds)
        if helper is not None:
            word = msgspec.structs.replace(word, setup=_HELPS)
        try:
            self._send_pool(sock, word)
        except PeerLost:
            if helper is not None:
                helper.close()
            raise
        return AnnouncingStream(sock, NAME, helper=helper)

    def _send_pool(self, sock: socket.socket, word: StreamWelcome) -> None:
        try:
            fd = self._memory.reader_fd()
        except OSError as error:
            raise PeerLost(f"no descriptor of the pool to give: {error}") from error
        try:
            framing.send_word(sock, stream_welcome.encode(word), [fd])
        finally:
            os.close(fd)

    def _helper(self, hello: StreamHello, fds: list[int]) -> Helper | None:
        if not hello.setup or len(fds) != 2 or self._help_copy == "never":
            return None
        offer = help_offer.decode(hello.setup)
        return Helper.open(offer, fds, source=self._memory, when=self._help_copy)


def dial(address: str, hello: StreamHello, memory: BlockMemory) -> Dial:
    """Connect to a source of this host, to fetch into `memory`. Raises base.Unreachable."""
    sock = local.connect(address)
    board = _board(memory)
    fds = [] if board is None else [memory.fd, board.fd]
    if board is not None:
        offer = HelpOffer(num_blocks=memory.num_blocks, block_bytes=memory.block_bytes)
        hello = msgspec.structs.replace(hello, setup=help_offer.encode(offer))

    def finish(sock: socket.socket, welcome: StreamWelcome, fds: list[int]) -> base.SinkStream:
        source = _map(welcome, fds)
        helped = board if welcome.setup == _HELPS else None
        if board is not None and helped is None:
            board.close()
        return ReadingStream(sock, NAME, source=source, memory=memory, board=helped)

    give_up = board.close if board is not None else lambda: None
    return Dial(sock, transport=NAME, hello=hello, finish=finish, fds=fds, give_up=give_up)


def _board(memory: BlockMemory) -> Board | None:
    """Where our pool may be written by a helper, and there are cores for one: a board."""
    if not memory.helped or len(os.sched_getaffinity(0)) < _MIN_HELPED_CORES:
        return None
    try:
        return Board.create()
    except OSError as error:
        log.warning("no board, we copy alone", extra={"why": str(error)})
        return None


def _map(welcome: StreamWelcome, fds: list[int]) -> BlockMemory:
    if len(fds) != 1:
        framing.close_fds(fds)
        raise base.Unreachable(f"{len(fds)} descriptors came with the welcome")
    try:
        return BlockMemory.open(
            fds.pop(), num_blocks=welcome.num_blocks, block_bytes=welcome.block_bytes
        )
    except LayoutMismatch as error:
        raise base.Unreachable(str(error)) from error
