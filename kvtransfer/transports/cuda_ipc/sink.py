"""The sink's end of a cuda_ipc stream: copies announced blocks out of the source's pool.

Copies run on a side stream and sum what they write; the sink's thread asks whether they have
happened and never waits. Whether the bytes are right is for their checksums to tell.
"""

import logging
import os
import socket
import threading
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from kvtransfer.chunk import Landing
from kvtransfer.device.driver import Driver, Sums
from kvtransfer.device.table import table
from kvtransfer.memory.device_pool import SUM_KIND, DeviceMemory
from kvtransfer.memory.generations import Generations
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import Span
from kvtransfer.transports.announcing import announcement, why_not_read
from kvtransfer.transports.base import ChunkTaker, SinkStream
from kvtransfer.transports.cuda_ipc.messages import NAME, CudaIpcSetup
from kvtransfer.transports.framing import MessageInbox
from kvtransfer.transports.polling import DevicePoller, Polled, is_over
from protocol.errors import LayoutMismatch, TransferError, WireError

log = logging.getLogger(__name__)

_MAX_COPIES: Final = 4
"""Launched at a time: enough to keep the device busy between two looks."""
_MAX_WAITING: Final = 64
"""Messages heard and not taken up; then no more are read."""


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A chunk whose slots the device writes."""

    landing: Landing
    sums: Sums


class CudaIpcSinkStream(Polled, SinkStream):
    transport = NAME

    def __init__(self, sock: socket.socket, memory: DeviceMemory, setup: "PeerMemory") -> None:
        """`setup` is our mapping of the source's pool, which the stream owns."""
        self._sock = sock
        self._memory = memory
        self._source = setup
        self._stream = memory.driver.stream()
        self._poller: DevicePoller = DevicePoller(sock)
        self._inbox = MessageInbox(sock, announcement)
        self._waiting: deque[Chunk | Finish] = deque()
        self._copies: deque[_Copy] = deque()
        self._closed = False

    def receive(self, taker: ChunkTaker) -> bool:
        self._poller.ticker.clear()
        self._end_copies(taker)
        if len(self._waiting) < _MAX_WAITING:
            for message in self._inbox.receive():
                if not isinstance(message, Chunk | Finish):
                    raise WireError(f"{type(message).__name__} is no message of {NAME}")
                self._waiting.append(message)
        while self._waiting and self._take_up(self._waiting[0], taker):
            self._waiting.popleft()
        self._poller.ticker.run(bool(self._copies))
        return self._inbox.has_more and not self._waiting

    def stop_writing(self, fetch: FetchId) -> bool:
        theirs = [copy for copy in self._copies if copy.landing.fetch == fetch]
        if not all(is_over(copy.sums) for copy in theirs):
            return False
        self._copies = deque(copy for copy in self._copies if copy.landing.fetch != fetch)
        return True

    def close(self) -> bool:
        if self._closed:
            return True
        if not all(is_over(copy.sums) for copy in self._copies):
            return False
        self._closed = True
        self._copies.clear()
        self._poller.close()
        self._sock.close()
        self._stream.close()
        self._source.close_apart()
        return True

    def _take_up(self, message: Chunk | Finish, taker: ChunkTaker) -> bool:
        """False when it must wait for copies under way."""
        if isinstance(message, Finish):
            if any(copy.landing.fetch == message.fetch for copy in self._copies):
                return False
            taker.finished(message)
            return True
        if len(self._copies) >= _MAX_COPIES:
            return False
        landing = taker.begin_chunk(message)
        if landing is not None:
            self._launch(landing, taker)
        return True

    def _launch(self, landing: Landing, taker: ChunkTaker) -> None:
        why = self._source.why_not(landing)
        if not why:
            try:
                self._source.span.check(landing.source)
                self._memory.span.check(landing.target)
                table_5R = table(landing.source, landing.target)
            except ValueError as error:
                why = str(error)
        if why:
            taker.end_chunk(landing, None, broken=why)
            return
        sums = self._memory.driver.copy(
            self._stream, target=self._memory.span, source=self._source.span, table_5R=table_5R,
            num_pieces=len(landing.pieces_P),
        )  # fmt: skip
        self._copies.append(_Copy(landing, sums))

    def _end_copies(self, taker: ChunkTaker) -> None:
        while self._copies and self._copies[0].sums.happened():
            copy = self._copies.popleft()
            why = self._source.why_not(copy.landing)
            taker.end_chunk(copy.landing, None if why else copy.sums.take_sums(), broken=why)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PeerMemory:
    """A source's device pool as a sink of the same host sees it: its memory and its generations.

    Read only by launched copies. The memory stays mapped until no copy can be under way.
    """

    driver: Driver
    span: Span
    generations: Generations

    @classmethod
    def open(
        cls, driver: Driver, setup: CudaIpcSetup, fds: list[int], *, num_blocks: int,
        block_bytes: int,
    ) -> "PeerMemory":  # fmt: skip
        """Map what was offered; takes `fds`, of the generations and of the memory. Raises
        TransferError when it cannot be used."""
        generations_fd, memory_fd = fds
        with ExitStack() as always, ExitStack() as undo:
            always.callback(os.close, memory_fd)
            generations = Generations.open(
                generations_fd, num_blocks=num_blocks, block_bytes=block_bytes
            )
            undo.callback(generations.close)
            if (setup.driver, setup.sum_kind) != (driver.name, SUM_KIND):
                theirs = f"{setup.driver} with {setup.sum_kind}"
                raise LayoutMismatch(f"its driver is {theirs}, ours {driver.name} with {SUM_KIND}")
            span = driver.open(
                setup.handle, memory_fd, num_bytes=num_blocks * block_bytes, device=setup.device
            )
            undo.pop_all()
        return cls(driver=driver, span=span, generations=generations)

    def why_not(self, landing: Landing) -> str:
        """Why this chunk's blocks are not to be read; empty when they are."""
        return why_not_read(landing, self.generations.counts_N)

    def close(self) -> None:
        """May wait for the device."""
        self.generations.close()
        self.driver.close(self.span)

    def close_apart(self) -> None:
        """On a thread of its own: a device may take its time to unmap a pool."""
        threading.Thread(target=self._close, name="cuda-ipc-close", daemon=True).start()

    def _close(self) -> None:
        try:
            self.close()
        except TransferError as error:
            log.warning(
                "a peer's pool stays mapped: restart this worker if it happens again",
                extra={"why": str(error)},
            )
