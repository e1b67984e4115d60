"""What a request's dispatch knows beside its states: times, reasons, whom to avoid.

Times are readings of the dispatcher's clock. Decides nothing.
"""

from dataclasses import dataclass, field

from protocol.ids import WorkerId
from router.prefix.found import FoundPrefix
from router.requests.events import GenerationRequest
from router.requests.request import RoutedRequest
from router.requests.trace import Prediction, RequestTrace


@dataclass(slots=True, kw_only=True)
class RequestContext:
    routed: RoutedRequest
    begun_at: float
    ends_at: float
    placed_at: float | None = None
    sent_at: float = 0.0
    """When the attempt under way was."""
    first_token_at: float | None = None
    is_told: bool = False
    """Its client was given the first event."""
    last_token_at: float = 0.0
    alone_since: float | None = None
    """Since when nobody could take it; None while someone has it."""
    alone_until: float = 0.0
    """Until when it waits for workers that have nobody else; 0.0 while it is no suspect."""
    num_found_before: int = 0
    """Times that the same had been found to be poison when this one came."""
    queue_factor: float = 1.0
    """Times `PlacementRules.worker_queue_s`: so much work may be before it on its worker."""
    expected_first_s: float = 0.0
    """Of the attempt under way: until its stream should run, and between two tokens of it."""
    expected_next_s: float = 0.0
    waits_since: float | None = None
    """For a worker that takes it; None while it has one."""
    waited_s: float = 0.0
    num_lost: int = 0
    num_stalled: int = 0
    num_refused: int = 0
    num_pauses: int = 0
    """Waits so far because every worker was full."""
    reasons: list[str] = field(default_factory=list)
    """Why each attempt so far was lost or refused."""
    refused: set[WorkerId] = field(default_factory=set)
    """Had no room a moment ago."""
    suspects: set[WorkerId] = field(default_factory=set)
    """Failed this request; avoided while there is anyone else."""
    final_trace: RequestTrace | None = None
    """Once a good ending was reached: what `Ended` carries and the traces keep."""
    hashes: dict[str, bytes] = field(default_factory=dict)
    """Of prompt and output so far, packed, by compat hash."""
    compat: str | None = None
    """Compat hash of the decode worker that had it last."""
    found: FoundPrefix | None = None
    """When it was last placed before a worker told what it had cached."""

    @property
    def request(self) -> GenerationRequest:
        return self.routed.request

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far: the context the next attempt begins with."""
        return len(self.routed.request.token_ids) + len(self.routed.generated)

    def note_sent(self, predicted: Prediction, *, now: float) -> None:
        self.placed_at, self.sent_at = self.placed_at or now, now
        if self.waits_since is not None:
            self.waited_s += now - self.waits_since
            self.waits_since = None
        self.expected_first_s = predicted.first_token_s
        self.expected_next_s = predicted.inter_token_s

    def trace(self, *, now: float) -> RequestTrace:
        routed, found, since = self.routed, self.found, self.waits_since
        return RequestTrace(
            request=routed.request.id,
            outcome=routed.outcome,
            prompt_tokens=len(routed.request.token_ids),
            output_tokens=len(routed.generated),
            cached_tokens=routed.cached_tokens or 0,
            predicted_cached_tokens=found.num_predicted_tokens if found else 0,
            held_cached_tokens=found.num_held_tokens if found else 0,
            bytes_moved=sum(attempt.bytes_moved for attempt in routed.attempts),
            num_retries=self.num_lost,
            num_stalled=self.num_stalled,
            num_refused=self.num_refused,
            waited_s=self.waited_s + (0.0 if since is None else now - since),
            placed_s=self._since_begin(self.placed_at),
            first_token_s=self._since_begin(self.first_token_at),
            total_s=now - self.begun_at,
            attempts=tuple(routed.attempts),
        )

    def _since_begin(self, at: float | None) -> float:
        return 0.0 if at is None else at - self.begun_at
