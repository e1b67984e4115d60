"""The two state tables of a fetch: what each end may do next, without clock, socket or memory.

`Fetch` is the fetcher's side of one fetch, `Lending` the source's side of one lease. The shells
(`kvtransfer.sink`, `kvtransfer.source`) feed them what happened and carry out what they answer.
Both keep every slot's writer: a slot has at most one, and an end is told only when it has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from kvtransfer.messages import Descriptor, FetchId, Slot
from protocol.errors import CorruptBlock, TransferError
from protocol.ids import LeaseId

MAX_ATTEMPTS = 3
"""A block that arrives broken three times is not bad luck."""


# -- fetcher ------------------------------------------------------------------------------


class FetchStage(StrEnum):
    REQUESTED = "requested"
    RECEIVING = "receiving"
    LANDED = "landed"
    FAILED = "failed"
    ABORTED = "aborted"


class FetchEvent(StrEnum):
    PROGRESS = "progress"
    """A write began, a block was verified or rejected, or the note came."""
    COMPLETED = "completed"
    """Every slot is verified and the note is here."""
    BROKE = "broke"
    """The source, the link, the deadline or the last attempt failed."""
    CANCELLED = "cancelled"


_F, _FE = FetchStage, FetchEvent
FETCH_TABLE: dict[tuple[FetchStage, FetchEvent], FetchStage] = {
    (_F.REQUESTED, _FE.PROGRESS): _F.RECEIVING,
    (_F.REQUESTED, _FE.BROKE): _F.FAILED,
    (_F.REQUESTED, _FE.CANCELLED): _F.ABORTED,
    (_F.RECEIVING, _FE.PROGRESS): _F.RECEIVING,
    (_F.RECEIVING, _FE.COMPLETED): _F.LANDED,
    (_F.RECEIVING, _FE.BROKE): _F.FAILED,
    (_F.RECEIVING, _FE.CANCELLED): _F.ABORTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFetch:
    """Ask the source for these slots under this attempt."""

    attempt: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class SendRelease:
    """Tell the source that it may free the blocks."""


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the source that the blocks are not wanted any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """Nothing writes into the slots any more: tell the caller. Comes exactly once, last."""


FetchStep = SendFetch | SendRelease | SendCancel | End
SlotState = Literal["waiting", "writing", "verified"]


class Fetch:
    """One fetch as its fetcher sees it. Methods are events; they return what to do, in order."""

    def __init__(
        self, *, fetch: FetchId, lease: LeaseId, slots: Sequence[Slot], block_tokens: int,
        num_tokens: int, block_bytes: int,
    ) -> None:  # fmt: skip
        self.fetch = fetch
        self.lease = lease
        self.stage = FetchStage.REQUESTED
        self.attempt = 0
        self.note: bytes | None = None
        self.error: TransferError | None = None
        self.reason = ""
        """Why it was cancelled."""
        self.ended = False
        self._slots = {slot.index: slot for slot in slots}
        self._states: dict[int, SlotState] = dict.fromkeys(self._slots, "waiting")
        self._num_open = len(self._slots)
        self._block_tokens = block_tokens
        self._num_tokens = num_tokens
        self._block_bytes = block_bytes
        self._history: list[str] = []

    @property
    def over(self) -> bool:
        return self.stage in (FetchStage.LANDED, FetchStage.FAILED, FetchStage.ABORTED)

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    def slot_block(self, index: int) -> int:
        """The pool block of a slot."""
        return self._slots[index].block_id

    @property
    def writing(self) -> list[int]:
        """Slots someone writes into at this moment."""
        return [index for index, state in self._states.items() if state == "writing"]

    def start(self) -> list[FetchStep]:
        """The link is open: ask for everything that is not here yet."""
        if self.over:
            return []
        return [self._ask()]

    def begin_write(self, *, attempt: int, block: Descriptor) -> int | None:
        """The pool block these bytes go to, which then has a writer until `end_write`.

        None: nobody wants these bytes (old attempt, unknown slot, already here): discard them.
        Raises TransferError when the description contradicts the lease.
        """
        if self.over or attempt != self.attempt or self._states.get(block.index) != "waiting":
            return None
        self._check(block)
        self._move(FetchEvent.PROGRESS)
        self._states[block.index] = "writing"
        return self._slots[block.index].block_id

    def end_write(self, index: int, *, broken: str = "") -> list[FetchStep]:
        """The writer of this slot has stopped; `broken` says why its bytes are not to be used."""
        assert self._states[index] == "writing", f"slot {index} has no writer: {self._history}"
        self._states[index] = "waiting" if broken else "verified"
        if self.over:
            return self._end_when_quiet()
        if not broken:
            self._num_open -= 1
            return self._complete_or([])
        self._move(FetchEvent.PROGRESS)
        if self.attempt >= MAX_ATTEMPTS:
            return self.fail(CorruptBlock(f"block {index}, attempt {self.attempt}: {broken}"))
        return [self._ask()]

    def note_arrived(self, *, attempt: int, note: bytes) -> list[FetchStep]:
        if self.over or attempt != self.attempt or self.note is not None:
            return []
        self.note = note
        self._move(FetchEvent.PROGRESS)
        return self._complete_or([])

    def fail(self, error: TransferError) -> list[FetchStep]:
        """The source said so, the link broke, the deadline passed, or the bytes stay wrong."""
        if self.over:
            return []
        self.error = error
        self._move(FetchEvent.BROKE)
        return [SendCancel(str(error)), *self._end_when_quiet()]

    def cancel(self, reason: str) -> list[FetchStep]:
        """The caller does not want the blocks any more."""
        if self.over:
            return []
        self.reason = reason
        self._move(FetchEvent.CANCELLED)
        return [SendCancel(reason), *self._end_when_quiet()]

    def _ask(self) -> SendFetch:
        self.attempt += 1
        waiting = (slot for slot in self._slots.values() if self._states[slot.index] == "waiting")
        return SendFetch(attempt=self.attempt, slots=tuple(waiting))

    def _complete_or(self, steps: list[FetchStep]) -> list[FetchStep]:
        if self._num_open or self.note is None:
            return steps
        self._move(FetchEvent.COMPLETED)
        return [*steps, SendRelease(), *self._end_when_quiet()]

    def _end_when_quiet(self) -> list[FetchStep]:
        if self.ended or self.writing:
            return []
        self.ended = True
        return [End()]

    def _check(self, block: Descriptor) -> None:
        start = block.index * self._block_tokens
        count = min(self._block_tokens, self._num_tokens - start)
        said = (block.token_start, block.token_count, block.num_bytes)
        if said != (start, count, self._block_bytes):
            raise TransferError(
                f"block {block.index} described as tokens {said[0]}+{said[1]}, {said[2]} bytes;"
                f" the lease says {start}+{count}, {self._block_bytes}"
            )

    def _move(self, event: FetchEvent) -> None:
        key = (self.stage, event)
        assert key in FETCH_TABLE, f"fetch {self.fetch}: no row {key} after {self._history}"
        if FETCH_TABLE[key] is not self.stage:
            self._history.append(f"{event} in attempt {self.attempt}")
        self.stage = FETCH_TABLE[key]


# -- source -------------------------------------------------------------------------------


class LeaseStage(StrEnum):
    LEASED = "leased"
    SENDING = "sending"
    RELEASED = "released"
    EXPIRED = "expired"


class LeaseEvent(StrEnum):
    FETCHED = "fetched"
    RELEASED = "released"
    """The fetcher has everything, or wants nothing; or the owner took the lease back."""
    LAPSED = "lapsed"
    """Nobody renewed it, or its fetcher is gone."""


_L, _LE = LeaseStage, LeaseEvent
LEASE_TABLE: dict[tuple[LeaseStage, LeaseEvent], LeaseStage] = {
    (_L.LEASED, _LE.FETCHED): _L.SENDING,
    (_L.LEASED, _LE.RELEASED): _L.RELEASED,
    (_L.LEASED, _LE.LAPSED): _L.EXPIRED,
    (_L.SENDING, _LE.FETCHED): _L.SENDING,
    (_L.SENDING, _LE.RELEASED): _L.RELEASED,
    (_L.SENDING, _LE.LAPSED): _L.EXPIRED,
}


class Refusal(Exception):
    """A fetch the source will not serve. The lease goes on, unless its fetcher drops it."""


class Lending:
    """One lease as its source sees it: what is written, what was asked for, what is due."""

    def __init__(
        self, *, lease: LeaseId, block_ids: Sequence[int], generations: Sequence[int],
        num_tokens: int, block_tokens: int, block_bytes: int,
    ) -> None:  # fmt: skip
        self.lease = lease
        self.stage = LeaseStage.LEASED
        self.block_ids = tuple(block_ids)
        self.generations = tuple(generations)
        self.num_tokens = num_tokens
        self.num_written = 0
        self.note: bytes | None = None
        self.fetch: FetchId | None = None
        self.attempt = 0
        self.num_sent = 0
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self.slots: dict[int, int] = {}
        """Of the present attempt: block index to the fetcher's pool block."""
        self._wanted: list[int] = []
        """Block indices asked for and not yet offered, the highest first."""
        self._note_due = False

    @property
    def over(self) -> bool:
        return self.stage in (LeaseStage.RELEASED, LeaseStage.EXPIRED)

    def publish(self, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens is written; what is written stays so."""
        assert num_tokens <= self.num_tokens
        self.num_written = max(self.num_written, num_tokens)

    def finish(self, note: bytes) -> None:
        """Everything is written."""
        self.publish(self.num_tokens)
        self.note = note
        self._note_due = self.fetch is not None

    def fetched(self, *, fetch: FetchId, attempt: int, slots: Sequence[Slot]) -> bool:
        """Someone asks for blocks. False when this word is a late one. Raises Refusal."""
        if self.over:
            raise Refusal(f"the lease is {self.stage}")
        if self.fetch is not None and fetch != self.fetch:
            raise Refusal("another fetch holds this lease")
        if attempt <= self.attempt:
            return False
        wanted = {slot.index: slot.block_id for slot in slots}
        indices = sorted(wanted, reverse=True)
        if len(indices) != len(slots):
            raise Refusal("a block is asked for twice")
        if indices and indices[0] >= len(self.block_ids):
            raise Refusal(f"block {indices[0]} of a lease of {len(self.block_ids)} blocks")
        self._move(LeaseEvent.FETCHED)
        self.fetch, self.attempt = fetch, attempt
        self.slots, self._wanted = wanted, indices
        self._note_due = self.note is not None
        return True

    def take_ready(self, limit: int) -> list[int]:
        """Up to `limit` block indices to send now, in token order; each comes once an attempt."""
        ready: list[int] = []
        while self._wanted and len(ready) < limit and self._written(self._wanted[-1]):
            ready.append(self._wanted.pop())
        self.num_sent += len(ready)
        return ready

    @property
    def has_ready(self) -> bool:
        return not self.over and bool(self._wanted) and self._written(self._wanted[-1])

    def take_note(self) -> bytes | None:
        """The note, once an attempt, as soon as it is known."""
        if not self._note_due or self.over:
            return None
        self._note_due = False
        return self.note

    def describe(self, index: int, checksum: int) -> Descriptor:
        start = index * self._block_tokens
        return Descriptor(
            index=index,
            block_id=self.block_ids[index],
            token_start=start,
            token_count=min(self._block_tokens, self.num_tokens - start),
            num_bytes=self._block_bytes,
            generation=self.generations[index],
            checksum=checksum,
        )

    def release(self) -> None:
        self._move(LeaseEvent.RELEASED)

    def lapse(self) -> None:
        self._move(LeaseEvent.LAPSED)

    def _written(self, index: int) -> bool:
        return self.num_written >= min((index + 1) * self._block_tokens, self.num_tokens)

    def _move(self, event: LeaseEvent) -> None:
        key = (self.stage, event)
        assert key in LEASE_TABLE, (
            f"lease {self.lease}: no row {key}; fetch {self.fetch}, attempt {self.attempt}"
        )
        self.stage = LEASE_TABLE[key]
