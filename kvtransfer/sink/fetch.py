"""A fetch as a state table: what its fetcher may do next, without clock, socket or memory.

Its events are methods; what they answer is for `kvtransfer.sink.fetches` to carry out. It keeps
every slot's writer: a slot has at most one, and an end names the slots that still have one. The
source's side is `kvtransfer.source.lease`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import known_words
from kvtransfer.messages import FetchId
from protocol.errors import CorruptBlock, TransferError
from protocol.ids import LeaseId
from protocol.state_table import StateTable

MAX_CORRUPT: Final = 3
"""A fetch in which bytes arrive broken three times has no bad luck."""
_WAITING, _WRITING, _VERIFIED = 0, 1, 2
"""What is known of a slot."""


class FetchStage(StrEnum):
    ASKING = "asking"
    REQUESTED = "requested"
    RECEIVING = "receiving"
    LANDED = "landed"
    FAILED = "failed"
    ABORTED = "aborted"


class FetchEvent(StrEnum):
    LENT = "lent"
    """The source lends some of the prefix that it was asked for."""
    PROGRESS = "progress"
    """A write began, a block was verified or rejected, or the note came."""
    COMPLETED = "completed"
    """Every slot is verified and the note is here."""
    BROKE = "broke"
    """The source, the link, the deadline or the last attempt failed."""
    CANCELLED = "cancelled"


_F, _FE = FetchStage, FetchEvent
FETCH_STATES: Final = StateTable(
    {
        (_F.ASKING, _FE.LENT): _F.REQUESTED,
        (_F.ASKING, _FE.BROKE): _F.FAILED,
        (_F.ASKING, _FE.CANCELLED): _F.ABORTED,
        (_F.REQUESTED, _FE.PROGRESS): _F.RECEIVING,
        (_F.REQUESTED, _FE.BROKE): _F.FAILED,
        (_F.REQUESTED, _FE.CANCELLED): _F.ABORTED,
        (_F.RECEIVING, _FE.PROGRESS): _F.RECEIVING,
        (_F.RECEIVING, _FE.COMPLETED): _F.LANDED,
        (_F.RECEIVING, _FE.BROKE): _F.FAILED,
        (_F.RECEIVING, _FE.CANCELLED): _F.ABORTED,
    }
)


@dataclass(frozen=True, slots=True)
class SendBorrow:
    """Ask the source what it lends of the prefix."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SendFetch:
    """Ask the source for these slots under this attempt."""

    attempt: int
    indices: NDArray[np.uint32]
    slots: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SendRelease:
    """Tell the source that it may free the blocks."""


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the source that the blocks are not wanted any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Tell the caller. Comes exactly once, before the source is told: it may wait, the caller
    does; slots that still have a writer are quarantined."""


FetchStep = SendBorrow | SendFetch | SendRelease | SendCancel | End


class Fetch:
    """One fetch as its fetcher sees it. Methods are events; they return what to do, in order.

    Its bitmap has a place per slot, in the order of their indices: what is written at, verified,
    and, when a stream broke or bytes were wrong, still to be asked for again."""

    def __init__(
        self, *, fetch_id: FetchId, lease_id: LeaseId | None, pieces_S: NDArray[Any]
    ) -> None:
        """`pieces_S`: as `kvtransfer.chunk.describe_pieces` makes them, by ascending index. Without
        a lease it asks for one first, and has no pieces until `accept_loan`."""
        self.id = fetch_id
        stage = FetchStage.ASKING if lease_id is None else FetchStage.REQUESTED
        self._life = FETCH_STATES.begin(stage, name=f"fetch {fetch_id}")
        self._has_asked = False
        """The source to lend something."""
        self.attempt = 0
        self.note: bytes | None = None
        self.error: TransferError | None = None
        self.reason = ""
        """Why it was cancelled."""
        self.ended = False
        self.num_writing = 0
        """Slots that have a writer."""
        self._num_corrupt = 0
        self._set_pieces(lease_id, pieces_S)

    def _set_pieces(self, lease_id: LeaseId | None, pieces_S: NDArray[Any]) -> None:
        self.lease_id = lease_id
        self.pieces_S = pieces_S
        self.indices_S = np.ascontiguousarray(pieces_S["index"])
        self.slots_S = np.ascontiguousarray(pieces_S["slot"])
        self._known_S = np.ascontiguousarray(known_words(pieces_S))
        self._states_S = np.zeros(len(self.indices_S), np.uint8)
        self._num_open = len(self.indices_S)

    @property
    def stage(self) -> FetchStage:
        return self._life.state

    @property
    def is_over(self) -> bool:
        return self._life.is_over

    @property
    def num_slots(self) -> int:
        return len(self.indices_S)

    @property
    def writing_S(self) -> NDArray[np.intp]:
        """Places of the slots that someone writes into at this moment."""
        return np.flatnonzero(self._states_S == _WRITING)

    @property
    def verified(self) -> tuple[int, ...]:
        """Indices of the slots that hold verified bytes."""
        return tuple(self.indices_S[self._states_S == _VERIFIED].tolist())

    def start(self) -> list[FetchStep]:
        """A stream is open: ask for everything that is neither here nor on its way; or for a lease,
        once: its answer does not come by the stream."""
        if self.is_over:
            return []
        if self.stage is not FetchStage.ASKING:
            return [self._ask()]
        if self._has_asked:
            return []
        self._has_asked = True
        return [SendBorrow()]

    def accept_loan(self, *, lease_id: LeaseId, pieces_S: NDArray[Any]) -> None:
        """The source lends these, of the prefix it was asked for; `start` asks for them."""
        self._move(FetchEvent.LENT)
        self._set_pieces(lease_id, pieces_S)

    def begin_write(self, *, attempt: int, pieces_P: NDArray[Any]) -> NDArray[np.intp] | None:
        """The places these pieces go to, which then have a writer until `end_write`.

        None: nobody wants these bytes (old attempt, or already here): discard them. Raises
        TransferError when the descriptions contradict the lease or what was asked for.
        """
        if self.is_over or attempt != self.attempt:
            return None
        places_P = self._places(pieces_P)
        if self._states_S[places_P].any():
            return None
        self._move(FetchEvent.PROGRESS)
        self._states_S[places_P] = _WRITING
        self.num_writing += len(places_P)
        return places_P

    def end_write(
        self, places_P: NDArray[np.intp], *, right_P: NDArray[np.bool_], broken: str
    ) -> list[FetchStep]:
        """The writer of these slots has stopped; `broken` says why those not right are no use."""
        assert (self._states_S[places_P] == _WRITING).all(), f"no writer: {self._life.story}"
        self.num_writing -= len(places_P)
        num_right = int(np.count_nonzero(right_P))
        all_right = num_right == len(places_P)
        self._states_S[places_P] = (
            _VERIFIED if all_right else np.where(right_P, _VERIFIED, _WAITING)
        )
        self._num_open -= num_right
        if self.is_over:
            return self._end_when_quiet()
        if all_right:
            return self._complete_or([])
        return self._ask_again(int(self.indices_S[places_P[~right_P]][0]), broken)

    def stop_write(self, places_P: NDArray[np.intp]) -> list[FetchStep]:
        """The writer of these slots has stopped before it was done: ask for them again later."""
        assert (self._states_S[places_P] == _WRITING).all(), f"no writer: {self._life.story}"
        self.num_writing -= len(places_P)
        self._states_S[places_P] = _WAITING
        return self._end_when_quiet() if self.is_over else []

    def note_arrived(self, *, attempt: int, note: bytes) -> list[FetchStep]:
        if self.is_over or attempt != self.attempt or self.note is not None:
            return []
        self.note = note
        self._move(FetchEvent.PROGRESS)
        return self._complete_or([])

    def fail(self, error: TransferError) -> list[FetchStep]:
        """The source said so, the link broke, the deadline passed, or the bytes stay wrong."""
        if self.is_over:
            return []
        self.error = error
        self._move(FetchEvent.BROKE)
        return [*self._give_back(str(error)), *self._end_when_quiet()]

    def cancel(self, reason: str) -> list[FetchStep]:
        """The caller does not want the blocks any more."""
        if self.is_over:
            return []
        self.reason = reason
        self._move(FetchEvent.CANCELLED)
        return [*self._give_back(reason), *self._end_when_quiet()]

    def abandon(self) -> list[FetchStep]:
        """It is over, but a writer cannot be stopped now: end without waiting for it."""
        assert self.is_over, f"abandoned while {self.stage}: {self._life.story}"
        if self.ended:
            return []
        self.ended = True
        return [End()]

    def _give_back(self, reason: str) -> list[FetchStep]:
        """The lease, if there is one: what is lent to a fetch that is over nobody takes."""
        return [] if self.lease_id is None else [SendCancel(reason)]

    def _ask(self) -> SendFetch:
        self.attempt += 1
        waiting_S = self._states_S == _WAITING
        return SendFetch(
            attempt=self.attempt, indices=self.indices_S[waiting_S], slots=self.slots_S[waiting_S]
        )

    def _ask_again(self, index: int, broken: str) -> list[FetchStep]:
        self._move(FetchEvent.PROGRESS)
        self._num_corrupt += 1
        if self._num_corrupt >= MAX_CORRUPT:
            return self.fail(CorruptBlock(f"block {index}, attempt {self.attempt}: {broken}"))
        return [self._ask()]

    def _complete_or(self, steps: list[FetchStep]) -> list[FetchStep]:
        if self._num_open or self.note is None:
            return steps
        self._move(FetchEvent.COMPLETED)
        return [*steps, *self._end_when_quiet(), SendRelease()]

    def _end_when_quiet(self) -> list[FetchStep]:
        if self.ended or self.num_writing:
            return []
        self.ended = True
        return [End()]

    def _places(self, pieces_P: NDArray[Any]) -> NDArray[np.intp]:
        """The place of each piece. Every field that we know is compared with what it must be."""
        places_P: NDArray[np.intp] = self.indices_S.searchsorted(pieces_P["index"])
        if len(places_P) > 1 and (np.diff(places_P) <= 0).any():
            raise TransferError("the source describes blocks twice or out of order")
        if not len(self.indices_S) or places_P[-1] >= len(self.indices_S):
            raise TransferError("the source describes a block that nobody asked for")
        same_PW = known_words(pieces_P) == self._known_S[places_P]
        if not same_PW.all():
            at = int(np.flatnonzero(~same_PW.all(axis=1))[0])
            raise TransferError(
                f"a piece described as {_told(pieces_P[at])};"
                f" due is {_told(self.pieces_S[places_P[at]])}"
            )
        return places_P

    def _move(self, event: FetchEvent) -> None:
        self._life.move(event, facts=f"attempt {self.attempt}")


def _told(piece: Any) -> str:
    return (
        f"block {piece['index']}, tokens {piece['token_start']}+{piece['token_count']},"
        f" {piece['num_bytes']} bytes for slot {piece['slot']}"
    )
