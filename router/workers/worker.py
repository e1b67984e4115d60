"""One worker incarnation as this router knows it: what it is, its last report, what was sent since.

Pure. Says what a report said, never what is true now: a worker may be gone before its link is. What
of it decides where requests go is its row of a `Fleet`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol

import msgspec

from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Beat,
    Load,
    LoadReport,
    Registration,
    Role,
    ServedVersion,
    ToRouter,
    ToWorker,
    WorkerState,
)
from router.placement.fleet import Fleet, Work

ALONE_S = 5.0
"""Nobody joins a suspect that was placed on a worker until a token came of it, or this is over."""
_NO_LOAD = Load(running=0, waiting=0, waiting_tokens=0)
TYPICAL_CONTEXT_TOKENS = 4_096
"""What a queued token attends to, of a worker whose queue and speed are not known better."""


class WorkerConnection(Protocol):
    """What a router needs of `protocol.channel.WorkerLink`."""

    registration: Registration

    def send_now(self, message: ToWorker) -> None:
        """Raises PeerLost when the link is lost."""

    async def hear(
        self,
        accept: Callable[[ToRouter], None],
        *,
        take_frame: Callable[[bytes], bool] | None = None,
    ) -> NoReturn:
        """Calls `accept` with all that the worker says, but for frames of which `take_frame` says
        True. Ends by raising PeerLost when the worker is gone, or what the two raised."""


ConnectionState = Literal["connecting", "mismatched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a request is to a worker that it was placed on."""

    at_s: float
    num_tokens: int
    """Its context: the KV room it takes."""
    num_uncached: int = 0
    """Tokens it is to compute before the first that it generates; 0 if another does."""
    prefill_s: float = 0.0
    """Predicted, of those."""


@dataclass(slots=True, eq=False)
class KnownWorker:
    """`state` is the worker's own once it has said so; `why` explains any but "ready"."""

    registration: Registration
    state: WorkerState | ConnectionState = "connecting"
    why: str = "connecting"
    """Of one that cannot be reached, what the last try found."""
    num_tries: int = 0
    retry_at: float = 0.0
    """Not sooner, on the registry's clock."""
    met_at: float = 0.0
    """When it was first heard of, on that clock."""
    beat: Beat | None = None
    heard_at: float = 0.0
    """When it last said anything, on the registry's clock."""
    advanced_at: float = 0.0
    """When it last was seen to have done something: what it said of a request, or a report that
    differs from the one before as only work makes it."""
    connection: WorkerConnection | None = None
    """None until the link is up."""
    unheard: dict[RequestId, int] = field(default_factory=dict)
    """Requests that it has and of which it has said no token yet that another did not say, with
    the index of the first that it would."""
    version: ServedVersion = field(init=False)
    _fleet: Fleet | None = None
    _slot: int = -1
    _num_posted: int = 0
    """Computations sent on its link so far, as the worker counts them (`Beat.num_received`)."""
    _sent: dict[RequestId, Sent] = field(default_factory=dict)
    _seats: dict[RequestId, int] = field(default_factory=dict)
    """Tokens of those that are to come and are not sent yet: room that newcomers do not find, and
    no company to anybody."""
    """Those that no report counts yet."""
    _numbers: dict[RequestId, int] = field(default_factory=dict)
    """Of those, the number under which the worker counts each that is on its way."""
    _computing: dict[RequestId, Sent] = field(default_factory=dict)
    """Prompts that it has and has not computed."""
    _reported_at_s: float = 0.0
    _suspects: dict[RequestId, float] = field(default_factory=dict)
    """Those to be joined by nobody, and until when."""

    def __post_init__(self) -> None:
        self.version = self.registration.version

    @property
    def id(self) -> WorkerId:
        return self.registration.worker

    @property
    def epoch(self) -> Epoch:
        return self.registration.epoch

    @property
    def role(self) -> Role:
        return self.registration.role

    @property
    def is_ready(self) -> bool:
        return self.state == "ready" and self.beat is not None

    def join_fleet(self, fleet: Fleet) -> None:
        """From now on its row there is kept up to date, until `leave_fleet`."""
        self._fleet, self._slot = fleet, fleet.add_worker(self.registration)

    def leave_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.remove_worker(self._slot)
        self._fleet, self._slot = None, -1

    @property
    def row(self) -> Any:
        """What placement goes by: of dtype `router.placement.row.ROW`."""
        assert self._fleet is not None, f"{self.id} has no row"
        return self._fleet.rows[self._slot]

    def note_mismatched(self, why: str) -> None:
        self.state, self.why = "mismatched", why
        self._show_state()

    def note_beat(self, beat: Beat, *, now: float) -> None:
        self._note_advance(beat.load, now)
        self.beat, self._reported_at_s = beat, now
        if self.state != "mismatched":
            self.state = beat.state
            self.why = "" if beat.state == "ready" else beat.state
        if self._fleet is not None:
            self._fleet.set_speeds(self._slot, beat.speeds, beat.transports)
        self._drop_counted(beat.num_received)
        self._show_state()

    def note_load(self, report: LoadReport, *, now: float) -> None:
        """What it has to do, between two beats."""
        if self.beat is None:
            return
        load = Load(
            running=report.running,
            waiting=report.waiting,
            waiting_tokens=report.waiting_tokens,
            context_tokens=report.context_tokens,
        )
        self._note_advance(load, now)
        blocks, num_free = self.beat.blocks, report.num_free_blocks
        cached = min(blocks.cached, num_free)
        blocks = msgspec.structs.replace(blocks, free=num_free - cached, cached=cached)
        self.beat = msgspec.structs.replace(
            self.beat, load=load, blocks=blocks, num_received=report.num_received
        )
        self._reported_at_s = now
        self._drop_counted(report.num_received)
        self._show_work()

    def _note_advance(self, load: Load, now: float) -> None:
        """Prompts shrink and contexts change only when a step was computed."""
        before = _NO_LOAD if self.beat is None else self.beat.load
        has_less = load.waiting_tokens < before.waiting_tokens
        if has_less or load.context_tokens != before.context_tokens:
            self.advanced_at = now

    def is_held(self, *, now: float) -> bool:
        """A suspect is here that nobody is to join."""
        return any(now < until for until in self._suspects.values())

    def serves(self, version: ServedVersion | None) -> bool:
        """Whether it answers requests of that version; None: of any."""
        return version is None or version == self.version

    @property
    def is_empty(self) -> bool:
        """It has no request, as far as is known here."""
        load = None if self.beat is None else self.beat.load
        busy = load is not None and load.running + load.waiting > 0
        return not (busy or self._sent or self.unheard)

    def note_sent(self, request: RequestId, sent: Sent, *, first: int, suspect: bool) -> None:
        """It was placed here; reports will count it once it has arrived. Its token of index `first`
        is the first that only this worker can say."""
        self._sent[request] = sent
        if sent.num_uncached:
            self._computing[request] = sent
        self.unheard[request] = first
        if suspect:
            self._suspects[request] = sent.at_s + ALONE_S
        self._show_work()

    def take_seat(self, request: RequestId, num_tokens: int) -> None:
        """It will come, here or elsewhere, once something else is known: until `give_seat_back`."""
        self._seats[request] = num_tokens
        self._show_work()

    def give_seat_back(self, request: RequestId) -> None:
        self._seats.pop(request, None)
        self._show_work()

    def note_posted(self, request: RequestId) -> None:
        """It was handed to the link, after all that were before it."""
        self._num_posted += 1
        if request in self._sent:
            self._numbers[request] = self._num_posted

    def note_heard(self, request: RequestId, index: int) -> None:
        """It said this token."""
        if index >= self.unheard.get(request, index + 1):
            self._computing.pop(request, None)
            self._forget(request)
            if request in self._sent:
                self._show_work()

    def note_ended(self, request: RequestId) -> None:
        """It is no load any more, even if no report has come since it was sent."""
        was_sent = self._sent.pop(request, None)
        self._numbers.pop(request, None)
        self._computing.pop(request, None)
        self._forget(request)
        if was_sent is not None:
            self._show_work()

    def _forget(self, request: RequestId) -> None:
        self.unheard.pop(request, None)
        self._suspects.pop(request, None)

    def _drop_counted(self, num_received: int) -> None:
        counted = [one for one, number in self._numbers.items() if number <= num_received]
        for request in counted:
            del self._numbers[request], self._sent[request]

    def _show_state(self) -> None:
        if self._fleet is not None:
            self._fleet.ready[self._slot] = self.is_ready
            self._show_work()

    def _show_work(self) -> None:
        if self._fleet is None or self.beat is None:
            return
        blocks, sent = self.beat.blocks, self._sent.values()
        work = Work(
            load=self.beat.load,
            free_share=(blocks.free + blocks.cached) / max(1, blocks.total),
            reported_at_s=self._reported_at_s,
            queue_s=self._queue_s(),
            sent_prompts=[
                (one.at_s, one.prefill_s)
                for request, one in self._sent.items()
                if request in self._computing
            ],
            num_sent=len(sent) + len(self._seats),
            num_sent_tokens=sum(one.num_tokens for one in sent) + sum(self._seats.values()),
        )
        self._fleet.set_work(self._slot, work)

    def _queue_s(self) -> float:
        """To compute the waiting tokens of its last report. What this router put there takes what
        was predicted of it, others' prompts as much a token; workers count a prompt in their queue
        whole, though they may have a part of it cached."""
        assert self.beat is not None
        num_waiting = self.beat.load.waiting_tokens
        own = [one for request, one in self._computing.items() if request not in self._sent]
        num_own, own_s = sum(one.num_tokens for one in own), sum(one.prefill_s for one in own)
        if not own:
            return num_waiting * self._token_s()
        num_uncached = sum(one.num_uncached for one in own)
        others_s = max(0, num_waiting - num_own) * own_s / num_own
        return own_s * min(1.0, num_waiting / num_uncached) + others_s

    def _token_s(self) -> float:
        """Of a prompt of which nothing is known."""
        assert self.beat is not None
        if self.beat.speeds.prefill_tokens_per_s > 0:
            return 1 / self.beat.speeds.prefill_tokens_per_s
        row = self.row
        step_s = float(row["fixed_s"] / row["max_step_tokens"])
        return float(row["token_s"] + TYPICAL_CONTEXT_TOKENS * row["attended_s"]) + step_s
