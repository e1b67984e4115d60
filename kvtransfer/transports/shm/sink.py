"""The sink's end of a shared-memory stream: copies announced blocks out of the source's pool.

Where both processes have a core to spare, the source copies pieces of a large chunk too
(`kvtransfer.transports.shm.copy_job`); then it writes into slots that the sink named, and the sink
ends a chunk only when the source has left it.
"""

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native.copy import HasSpan, Span, copy_ranges
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import XXH3, SumKind
from kvtransfer.transports.announcing import Left, Staged, announcement, why_not_read, why_stale
from kvtransfer.transports.base import ChunkTaker, SinkStream
from kvtransfer.transports.framing import MessageInbox, MessageOutbox
from kvtransfer.transports.polling import has_hung_up
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.messages import NAME, Help, Taken, shm_to_source
from kvtransfer.transports.shm.staged import PeerStaging
from protocol.errors import WireError

_TURN_BYTES: Final = 32 << 20
"""Most bytes copied in one turn, but for the chunk that passes it."""
_HELPED_BYTES: Final = 1 << 20
"""Smaller chunks are copied before a helper would have woken up."""
_AWAIT_S: Final = 0.001
"""A helper's last claim takes 20 us; one that lost its core is waited for asleep."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ShmSinkSetup:
    """What the two ends agreed on; its stream owns source and job."""

    source: BlockMemory | PeerStaging
    """Our view of the source's pool, or of the staging of one on a device."""
    copy_job: CopyJob | None = None
    """Without one chunks are copied by us alone."""
    sum_kind: SumKind = XXH3
    has_room: Callable[[], bool] = lambda: True
    """A chunk may be begun now."""


class ShmSinkStream(SinkStream):
    transport = NAME

    def __init__(self, sock: socket.socket, memory: HasSpan, setup: ShmSinkSetup) -> None:
        self._sock = sock
        self._memory = memory
        self._source: BlockMemory | PeerStaging | None = setup.source
        self._sum_kind: SumKind = setup.sum_kind
        self._has_room = setup.has_room
        self._copy_job = setup.copy_job
        self._inbox = MessageInbox(sock, announcement)
        self._outbox = MessageOutbox(sock, shm_to_source)
        self._waiting: deque[Chunk | Staged | Finish] = deque()
        self._shared: Landing | None = None
        """The chunk that both may copy, begun and not ended."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, taker: ChunkTaker) -> bool:
        if self._shared is not None:
            self._look_at_job(taker)
        for message in self._inbox.receive():
            match message:
                case Chunk() | Staged() | Finish():
                    self._waiting.append(message)
                case Left():
                    pass  # the job says the same
        if self._shared is not None:
            self._look_at_job(taker)  # `Left` may have come since: no other will
        num_bytes = 0
        while self._waiting and self._can_begin() and num_bytes < _TURN_BYTES:
            num_bytes += self._take_up(self._waiting.popleft(), taker)
        return self._inbox.has_more or (self._can_begin() and bool(self._waiting))

    def stop_writing(self, fetch: FetchId) -> bool:
        return self._shared is None or self._shared.fetch != fetch or self._stopped()

    def close(self) -> bool:
        if self._source is None:
            return True
        if self._shared is not None and not self._stopped():
            return False
        self._sock.close()
        self._source.close()
        self._source = None
        if self._copy_job is not None:
            self._copy_job.close()
        return True

    def _can_begin(self) -> bool:
        return self._shared is None and self._has_room()

    def _take_up(self, message: Chunk | Staged | Finish, taker: ChunkTaker) -> int:
        """Do what a message asks for; bytes copied."""
        source = self._source
        match message:
            case Finish():
                taker.finished(message)
                return 0
            case Chunk() if isinstance(source, BlockMemory):
                return self._read(source, message, taker)
            case Staged() if isinstance(source, PeerStaging):
                return self._take(source, message, taker)
            case _:
                raise WireError(f"{type(message).__name__} is nothing of such a source")

    def _read(self, source: BlockMemory, chunk: Chunk, taker: ChunkTaker) -> int:
        """Copy a chunk out of the source's pool; bytes copied."""
        landing = taker.begin_chunk(chunk)
        if landing is None:
            return 0
        if why := why_not_read(landing, source.generations_N):
            taker.end_chunk(landing, None, broken=why)
            return 0
        if self._is_shared(landing):
            self._share(landing, source, taker)
        else:
            self._read_alone(landing, source, taker)
        return landing.num_bytes

    def _read_alone(self, landing: Landing, source: BlockMemory, taker: ChunkTaker) -> None:
        self._end(landing, self._copy(landing, source.span, landing.source), taker)

    def _take(self, source: PeerStaging, staged: Staged, taker: ChunkTaker) -> int:
        """Copy a chunk out of the source's staging and say so; bytes copied."""
        landing = taker.begin_chunk(staged.chunk)
        if landing is not None:
            where = source.where(landing, staged.offset)
            taker.end_chunk(landing, self._copy(landing, source.span, where))
        self._outbox.put_message(Taken(offset=staged.offset))
        self._outbox.flush()
        return 0 if landing is None else landing.num_bytes

    def _copy(self, landing: Landing, span: Span, where: Ranges) -> NDArray[np.uint64]:
        target = landing.target
        try:
            return copy_ranges(self._memory.span, target, span, where, self._sum_kind)
        except ValueError as error:
            raise WireError(f"the source's pool is not what its layout says: {error}") from error

    def _is_shared(self, landing: Landing) -> bool:
        job = self._copy_job
        if job is None or self._sum_kind != XXH3:
            return False
        return landing.num_bytes >= _HELPED_BYTES and job.fits(landing)

    def _share(self, landing: Landing, source: BlockMemory, taker: ChunkTaker) -> None:
        """Make the chunk a job, tell the source, and copy what it does not."""
        assert self._copy_job is not None
        number = self._copy_job.begin_chunk(landing)
        if number is None:
            self._read_alone(landing, source, taker)
            return
        self._outbox.put_message(Help(number=number))
        self._outbox.flush()
        self._shared = landing
        try:
            self._copy_job.copy_pieces(number, target=self._memory.span, source=source.span)
        except ValueError as error:
            raise WireError(str(error)) from error
        if self._copy_job.is_done_within(_AWAIT_S):
            self._look_at_job(taker)

    def _look_at_job(self, taker: ChunkTaker) -> None:
        """End the shared chunk if everything of it is done, or everybody has left it."""
        landing, job = self._shared, self._copy_job
        assert landing is not None and job is not None
        if job.is_done_within(0.0):
            self._shared = None
            self._end(landing, job.sums(len(landing.pieces_P)), taker)
        elif job.is_shut and job.shut():
            self._shared = None
            taker.end_chunk(landing, None, broken="it was stopped")

    def _stopped(self) -> bool:
        """Ask the source to leave our pool; True when it has, or is dead: its memory goes before
        its socket."""
        assert self._copy_job is not None
        return self._copy_job.shut() or has_hung_up(self._sock)

    def _end(self, landing: Landing, sums_P: NDArray[np.uint64], taker: ChunkTaker) -> None:
        assert isinstance(self._source, BlockMemory)
        why = why_stale(landing, self._source.generations_N)
        taker.end_chunk(landing, None if why else sums_P, broken=why)
