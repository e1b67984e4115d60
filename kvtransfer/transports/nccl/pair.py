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
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.native.copy import Span
from protocol.errors import PeerLost, TransferError
from protocol.state_table import StateTable

log = logging.getLogger(__name__)

NUM_STAGED: Final = 4
"""Chunks under way at each end: one gathered, one sent, one received, one scattered."""
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


@dataclass(slots=True, eq=False)
class Transfer:
    """One send or receive of `num_bytes` from the start of a staging span."""

    span: Span
    num_bytes: int
    begun_s: float = 0.0
    event: Mark | None = None
    """Recorded once the library has launched it."""


class Staging:
    """Contiguous device memory for the chunks under way, `num` spans of `num_bytes`."""

    def __init__(self, driver: Driver, *, num: int, num_bytes: int) -> None:
        """Raises TransferError when the device has no room."""
        self.num_bytes = num_bytes
        self._driver = driver
        self._spans: list[Span] = []
        try:
            for _ in range(num):
                self._spans.append(driver.allocate(num_bytes))
        except TransferError:
            self.free()
            raise
        self._idle = list(self._spans)

    def take_span(self) -> Span | None:
        """A span nobody uses; None while all are in use."""
        return self._idle.pop() if self._idle else None

    def return_span(self, span: Span) -> None:
        self._idle.append(span)

    def free(self) -> None:
        """No launched work may use any of it any more."""
        while self._spans:
            self._driver.free(self._spans.pop())


def join_pair(memory: DeviceMemory, unique_id: bytes, *, rank: int, chunk_bytes: int) -> "Pair":
    """Begin to meet the other rank, with staging for chunks of so many bytes. Raises PeerLost."""
    assert memory.collectives is not None
    try:
        return Pair(
            driver=memory.driver, collectives=memory.collectives, unique_id=unique_id, rank=rank,
            staging=Staging(memory.driver, num=NUM_STAGED, num_bytes=chunk_bytes),
            clock=time.monotonic,
        )  # fmt: skip
    except TransferError as error:
        raise PeerLost(f"no communicator can be made: {error}") from error


class Pair:
    """One end. Used by one thread."""

    def __init__(
        self, *, driver: Driver, collectives: Collectives, unique_id: bytes, rank: int,
        staging: Staging, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """Begin to meet the other rank; owns the staging. Raises TransferError."""
        self._life = PAIR_STATES.begin(PairStage.JOINING, name=f"pair as rank {rank}")
        self.stream = driver.stream()
        """What sends and receives run on."""
        self.staging = staging
        self._sends = rank == 0
        self._clock = clock
        self._patience_s = collectives.patience_s
        self._waiting: deque[Transfer] = deque()
        self._launching: Transfer | None = None
        self._launched: deque[Transfer] = deque()
        self._begun_s = clock()
        try:
            self._communicator = collectives.join(unique_id, rank=rank)
        except TransferError:
            staging.free()
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
    def is_gone(self) -> bool:
        """Aborted, and its memory given back."""
        return self._reaper is not None and not self._reaper.is_alive()

    def post_transfer(self, span: Span, num_bytes: int) -> Transfer:
        """Send or receive after everything posted before."""
        transfer = Transfer(span, num_bytes)
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
            done.append(self._launched.popleft())
            return True
        return self._launch_next()

    def _launch_next(self) -> bool:
        if not self._waiting:
            return False
        transfer = self._launching = self._waiting.popleft()
        transfer.begun_s = self._clock()
        begin = self._communicator.send if self._sends else self._communicator.receive
        begin(transfer.span, transfer.num_bytes, self.stream)
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
            self.staging.free()
            after()

    def _is_idle_within(self, patience_s: float) -> bool:
        """What else was launched on the stream, gathers, is done too."""
        event, deadline_s = self.stream.record(), time.monotonic() + patience_s
        while not event.happened():
            if time.monotonic() > deadline_s:
                log.warning("staging is left to a device that does not answer: restart this worker")
                return False
            time.sleep(_LOOK_S)
        return True
