"""One worker incarnation as this router knows it: what it is, its last beat, what was sent since.

Pure. Says what a beat said, never what is true now: a worker may be gone before its link is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

import msgspec

from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Beat,
    Load,
    LoadReport,
    Registration,
    Role,
    ToRouter,
    ToWorker,
    WorkerState,
)
from router.placement.place import Candidate

ALONE_S = 5.0
"""Nobody joins a suspect that was placed on a worker until a token came of it, or this is over."""
BEAT_LAG_S = 0.1
"""A beat may have been written before what was sent this long before it arrived."""


class WorkerConnection(Protocol):
    """What a router needs of `protocol.channel.WorkerLink`."""

    registration: Registration

    def send_now(self, message: ToWorker) -> None:
        """Raises PeerLost when the link is lost."""

    async def hear(self, accept: Callable[[ToRouter], None]) -> NoReturn:
        """Calls `accept` with all that the worker says. Ends by raising PeerLost when the worker is
        gone, or what `accept` raised."""


ConnectionState = Literal["connecting", "mismatched"]


@dataclass(frozen=True, slots=True)
class _Sent:
    at: float
    num_tokens: int


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
    beat: Beat | None = None
    connection: WorkerConnection | None = None
    """None until the link is up."""
    unheard: dict[RequestId, int] = field(default_factory=dict)
    """Requests that it has and of which it has said no token yet that another did not say, with
    the index of the first that it would."""
    _sent: dict[RequestId, _Sent] = field(default_factory=dict)
    _suspects: dict[RequestId, float] = field(default_factory=dict)
    """Those to be joined by nobody, and until when."""

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

    def note_beat(self, beat: Beat, *, now: float) -> None:
        self.beat = beat
        if self.state != "mismatched":
            self.state = beat.state
            self.why = "" if beat.state == "ready" else beat.state
        counted = [r for r, sent in self._sent.items() if sent.at <= now - BEAT_LAG_S]
        for request in counted:
            del self._sent[request]

    def note_load(self, report: LoadReport) -> None:
        """What it has to do, between two beats."""
        if self.beat is None:
            return
        load = Load(
            running=report.running,
            waiting=report.waiting,
            waiting_tokens=report.waiting_tokens,
            context_tokens=report.context_tokens,
        )
        self.beat = msgspec.structs.replace(self.beat, load=load, num_received=report.num_received)

    def is_held(self, *, now: float) -> bool:
        """A suspect is here that nobody is to join."""
        return any(now < until for until in self._suspects.values())

    @property
    def is_empty(self) -> bool:
        """It has no request, as far as is known here."""
        load = None if self.beat is None else self.beat.load
        busy = load is not None and load.running + load.waiting > 0
        return not (busy or self._sent or self.unheard)

    def note_sent(
        self, request: RequestId, num_tokens: int, *, first: int, suspect: bool, now: float
    ) -> None:
        """A prompt with so many tokens to compute was sent; the next beats will count it. Its
        token of index `first` is the first that only this worker can say."""
        self._sent[request] = _Sent(now, num_tokens)
        self.unheard[request] = first
        if suspect:
            self._suspects[request] = now + ALONE_S

    def note_heard(self, request: RequestId, index: int) -> None:
        """It said this token."""
        if index >= self.unheard.get(request, index + 1):
            self._forget(request)

    def note_ended(self, request: RequestId) -> None:
        """It is no load any more, even if no beat has come since it was sent."""
        self._sent.pop(request, None)
        self._forget(request)

    def _forget(self, request: RequestId) -> None:
        self.unheard.pop(request, None)
        self._suspects.pop(request, None)

    def candidate(self, *, num_cached_tokens: int) -> Candidate:
        """As `placement` sees it; only for a ready worker."""
        assert self.beat is not None, f"{self.id} is {self.state}, not a candidate"
        registration, load, speeds = self.registration, self.beat.load, self.beat.speeds
        sent_tokens = sum(sent.num_tokens for sent in self._sent.values())
        layout, num_groups = registration.layout, registration.layout.num_groups
        # Counted as if every token took a place in each group's blocks. A worker whose layers see
        # windows holds longer sequences than that: it says what it takes by `max_context_tokens`.
        longest = -(-registration.max_context_tokens // layout.block_tokens)
        return Candidate(
            worker=self.id,
            role=self.role,
            compat=registration.compat,
            num_cached_tokens=num_cached_tokens,
            num_waiting_tokens=load.waiting_tokens + sent_tokens,
            num_running=load.running + load.waiting + len(self._sent),
            num_free_blocks=(self.beat.blocks.free + self.beat.blocks.cached) // num_groups,
            num_blocks=max(longest, registration.num_blocks // num_groups),
            block_tokens=layout.block_tokens,
            token_bytes=layout.token_bytes * num_groups,
            max_context_tokens=registration.max_context_tokens,
            transports=registration.transports,
            prefill_tokens_per_s=speeds.prefill_tokens_per_s,
            decode_step_s=speeds.decode_step_s,
            transfer_bytes_per_s=speeds.transfer_bytes_per_s,
        )
