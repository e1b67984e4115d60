"""A two-rank communicator between one source and one sink, and the transfers under way on it.

Made when the first chunk is to be sent, one for each stream; both ends advance it from their own
thread and never wait. It is up or gone: whatever goes wrong, or takes longer than its patience,
is PeerLost; then it is aborted, on a thread of its own because NCCL may take a while to get its
kernels off the device, and staging is given back only after that. The next stream makes a new one.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kvtransfer.device.collectives import Collectives
from kvtransfer.device.driver import Driver, Mark
from kvtransfer.device.staging import DeviceStaging
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.native.copy import Span
from protocol.errors import PeerLost, TransferError
from protocol.state_table import StateTable

log = logging.getLogger(__name__)

NUM_STAGED: Final = 4
"""Chunks of a pair under way at each end: two that are on the link, two before or after it."""
MAX_GROUP: Final = 2
"""Transfers in one launch: of those staged, others are gathered or scattered meanwhile."""
_LOOK_S: Final = 0.001
_JOIN_FACTOR: Final = 4
"""To join, NCCL looks at all of the machine and its networks: more patience than for a chunk."""


class PairStage(StrEnum):
    JOINING = "joining"
    UP = "up"
    ABORTED = "aborted"


class PairEvent(StrEnum):
    JOINED = "joined"
    BROKEN_OFF = "broken_off"


_P, _PE = PairStage, PairEvent
PAIR_STATES: Final = StateTable(
    {
        (_P.JOINING, _PE.JOINED): _P.UP,
        (_P.JOINING, _PE.BROKEN_OFF): _P.ABORTED,
        (_P.UP, _PE.BROKEN_OFF): _P.ABORTED,
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """One send or receive of a whole staging span, or of its start."""

    span: Span
    after: Mark | None
    """What must have happened on the device first."""


@dataclass(slots=True, eq=False)
class _Group:
    """Transfers launched as one."""

    transfers: list[Transfer]
    begun_s: float
    event: Mark | None = None
    """Recorded once the library has launched it."""

    @property
    def num_bytes(self) -> int:
        return sum(transfer.span.num_bytes for transfer in self.transfers)


def join_pair(memory: DeviceMemory, unique_id: bytes, *, rank: int, chunk_bytes: int) -> "Pair":
    """Begin to meet the other rank, for chunks of so many bytes at most. Raises PeerLost."""
    assert memory.collectives is not None
    try:
        return Pair(
            driver=memory.driver, collectives=memory.collectives, unique_id=unique_id, rank=rank,
            staging=memory.device_staging, chunk_bytes=chunk_bytes, clock=time.monotonic,
        )  # fmt: skip
    except TransferError as error:
        raise PeerLost(f"no communicator can be made: {error}") from error


class Pair:
    """One end. Used by one thread."""

    def __init__(
        self, *, driver: Driver, collectives: Collectives, unique_id: bytes, rank: int,
        staging: DeviceStaging, chunk_bytes: int, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """Begin to meet the other rank. Raises TransferError."""
        self._life = PAIR_STATES.begin(PairStage.JOINING, name=f"pair as rank {rank}")
        self.stream = driver.stream()
        """What sends and receives run on."""
        self._staging = staging
        self._chunk_bytes = chunk_bytes
        self._taken: dict[int, Span] = {}
        """DeviceStaging spans of this pair, by address."""
        self._sends = rank == 0
        self._clock = clock
        self._patience_s = collectives.patience_s
        self._waiting: deque[Transfer] = deque()
        self._last_after: Mark | None = None
        self._launching: _Group | None = None
        self._launched: deque[_Group] = deque()
        self._begun_s = clock()
        try:
            self._communicator = collectives.join(unique_id, rank=rank)
        except TransferError:
            self.stream.close()
            raise
        self._reaper: threading.Thread | None = None

    @property
    def stage(self) -> PairStage:
        return self._life.state

    @property
    def is_busy(self) -> bool:
        """Something is under way on the device or in the library."""
        joining = self.stage is PairStage.JOINING
        return joining or bool(self._waiting or self._launching or self._launched)

    @property
    def is_settling(self) -> bool:
        """The library is about to launch something: worth a look soon."""
        return self._launching is not None

    @property
    def is_gone(self) -> bool:
        """Aborted, and its memory given back."""
        return self._reaper is not None and not self._reaper.is_alive()

    def take_span(self) -> Span | None:
        """DeviceStaging for a chunk; None while there is none for it. Raises PeerLost.

        Who receives gets one in any case: else two workers that fetch from each other could both
        have all of theirs in sends that wait for the other's receives."""
        if len(self._taken) >= NUM_STAGED:
            return None
        beyond = not self._sends and not self._taken
        try:
            span = self._staging.take_span(self._chunk_bytes, beyond=beyond)
        except TransferError as error:
            raise PeerLost(f"no staging: {error}") from error
        if span is not None:
            self._taken[span.address] = span
        return span

    def return_span(self, span: Span) -> None:
        """Of `take_span`, or its start; no work uses it any more."""
        self._staging.return_span(self._taken.pop(span.address))

    def post_transfer(self, span: Span, num_bytes: int, *, after: Mark | None = None) -> Transfer:
        """Send or receive after everything posted before, once `after` has happened: all that is
        handed here are marks of one stream."""
        transfer = Transfer(Span(span.address, num_bytes), after)
        self._last_after = after
        self._waiting.append(transfer)
        return transfer

    def advance(self) -> list[Transfer]:
        """Go on as far as it goes without waiting; the transfers that are done, in order.

        Raises PeerLost when the communicator failed, or something took longer than the patience.
        """
        if self.stage is PairStage.ABORTED:
            raise PeerLost("the communicator is aborted")
        done: list[Transfer] = []
        try:
            while self._step(done):
                pass
        except PeerLost:
            raise
        except TransferError as error:
            raise PeerLost(f"the device failed: {error}") from error
        self._check_patience()
        return done

    def abort(self, after: Callable[[], None] = lambda: None) -> None:
        """Break off; `after` is called on another thread once nothing is under way any more."""
        if self.stage is PairStage.ABORTED:
            return
        self._life.move(PairEvent.BROKEN_OFF)
        self._reaper = threading.Thread(
            target=self._reap, args=(after,), name="nccl-abort", daemon=True
        )
        self._reaper.start()

    def _step(self, done: list[Transfer]) -> bool:
        """One step; False when there is none to take now."""
        if not self._communicator.settled():
            return False
        if self.stage is PairStage.JOINING:
            self._life.move(PairEvent.JOINED)
            return True
        if self._launching is not None:
            self._launching.event = self.stream.record()
            self._launched.append(self._launching)
            self._launching = None
            return True
        if self._launched and (event := self._launched[0].event) and event.happened():
            done.extend(self._launched.popleft().transfers)
            return True
        return self._launch_next()

    def _launch_next(self) -> bool:
        if not self._waiting:
            return False
        count = min(len(self._waiting), MAX_GROUP)
        transfers = [self._waiting.popleft() for _ in range(count)]
        self._launching = _Group(transfers, self._clock())
        for transfer in transfers:
            if transfer.after is not None:
                self.stream.wait_for(transfer.after)
        begin = self._communicator.send if self._sends else self._communicator.receive
        begin([transfer.span for transfer in transfers], self.stream)
        return True

    def _check_patience(self) -> None:
        oldest = self._launched[0] if self._launched else self._launching
        if oldest is not None:
            what, since_s, most_s = f"{oldest.num_bytes} bytes", oldest.begun_s, self._patience_s
        elif self.stage is PairStage.JOINING:
            what, since_s, most_s = "joining", self._begun_s, _JOIN_FACTOR * self._patience_s
        else:
            return
        if self._clock() - since_s > most_s:
            raise PeerLost(f"{what} took longer than {most_s} s")

    def _reap(self, after: Callable[[], None]) -> None:
        try:
            self._communicator.abort()
            idle = self._is_idle_within(self._patience_s)
        except TransferError as error:
            log.warning(
                "NCCL abort failed, its staging stays allocated: restart this worker",
                extra={"why": str(error)},
            )
            return  # the library may still use the staging: it stays
        if idle:
            self.stream.close()
            while self._taken:
                self._staging.return_span(self._taken.popitem()[1])
            after()

    def _is_idle_within(self, patience_s: float) -> bool:
        """What else uses the staging, gathers, is done too."""
        marks: list[Mark] = [self.stream.record()]
        if self._last_after is not None:
            marks.append(self._last_after)
        deadline_s = time.monotonic() + patience_s
        while not all(mark.happened() for mark in marks):
            if time.monotonic() > deadline_s:
                log.warning("staging is left to a device that does not answer: restart this worker")
                return False
            time.sleep(_LOOK_S)
        return True
