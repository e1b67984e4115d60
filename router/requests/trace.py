"""The record of each recent request: route, reason, workers, blocks, bytes, seconds, retries, and
what was predicted of them.

Holds no prompt, no token and no text. Lost when the router ends.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from protocol.ids import RequestId, WorkerId
from router.failover.stall import Awaited

KEEP_S = 600.0
"""Whoever asks has the id from an answer or a log line of a moment ago."""
NUM_KEPT = 10_000
"""Of a busier router the last ones: about 20 MB."""
MAX_CHOICES = 128
"""Of one request, as `router.runtime.ApiLimits.max_choices`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What placement expected of an attempt."""

    first_token_s: float
    """Until its stream runs, counted from when it was sent."""
    queue_s: float
    inter_token_s: float
    num_uncached_tokens: int
    """Of prompt and output so far, to be computed."""
    num_pulled_tokens: int
    """The beginning that was to be pulled from another's cache, counted from token 0."""


@dataclass(slots=True, kw_only=True)
class AttemptTrace:
    """One try on one pair of workers, written while it lasts: to make it anew for each fact took a
    tenth of a millisecond a request. Seconds are 0.0 for a leg that did not happen."""

    attempt: int
    reason: str
    """Why these workers: the text of the `x-baton-route` header."""
    prefill: WorkerId | None
    """None: the decode worker computed the prompt itself."""
    decode: WorkerId
    """Of a prompt that is read and no more, its one worker, whatever its role."""
    outcome: str = ""
    """`stop`, `length`, `aborted: ...`, or why the attempt was given up."""
    predicted: Prediction | None = None
    sent_s: float = 0.0
    """Since the call of `generate`."""
    first_token_s: float = 0.0
    """After it was sent; 0.0 when no token came of it."""
    num_tokens: int = 0
    """That came of it."""
    stalled: Awaited | None = None
    """What it was given up for: its worker owed it for too long."""
    transport: str = ""
    prefill_blocks_reused: int = 0
    """Of the prefill worker's prefix cache; 0 when decode computed the prompt itself."""
    blocks_reused: int = 0
    """Of the decode worker's own prefix cache."""
    blocks_moved: int = 0
    bytes_moved: int = 0
    pulled_from: WorkerId | None = None
    """Whose prefix cache the one that computed the prompt was told to fetch its beginning from."""
    pulled_tokens: int = 0
    """That came from there."""
    pull_outcome: str = ""
    """`landed`, or why not all of it came; what did not was computed."""
    pull_s: float = 0.0
    prefill_cached_tokens: int = 0
    decode_cached_tokens: int = 0
    prefill_queued_s: float = 0.0
    prefill_s: float = 0.0
    fetch_s: float = 0.0
    exposed_s: float = 0.0
    """The part of the fetch after prefill had ended: what the hand-over cost."""
    decode_queued_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """One request from dispatch to ending. Seconds count from the call of `generate`."""

    request: RequestId
    outcome: str
    """`stop`, `length`, `aborted: ...` or `failed: ...`."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed for this request: the first attempt's prefix hit."""
    predicted_cached_tokens: int = 0
    """As the prefix index had it when the request was placed."""
    held_cached_tokens: int = 0
    """By the worker that had most of the prompt then, wherever the request went."""
    bytes_moved: int = 0
    num_retries: int = 0
    """Attempts that were lost; `num_stalled` of them because a worker stood still."""
    num_stalled: int = 0
    num_refused: int = 0
    """Attempts that a worker had no room for."""
    waited_s: float = 0.0
    """In this router, for workers with room or for any at all, all attempts together."""
    placed_s: float
    first_token_s: float
    """0.0 when there was no token."""
    total_s: float
    attempts: tuple[AttemptTrace, ...]


@dataclass(slots=True, kw_only=True)
class TraceRing:
    """Traces of the last `keep_s`, at most `num_kept`. Not thread-safe: one event loop owns it."""

    keep_s: float = KEEP_S
    num_kept: int = NUM_KEPT
    _traces: OrderedDict[RequestId, tuple[float, RequestTrace]] = field(default_factory=OrderedDict)
    """With the time at which each was added, the oldest first."""

    def add(self, trace: RequestTrace, *, now: float) -> None:
        self._traces[trace.request] = now, trace
        self._traces.move_to_end(trace.request)
        while len(self._traces) > self.num_kept or self._oldest() < now - self.keep_s:
            self._traces.popitem(last=False)

    def find(self, request: RequestId, *, now: float) -> tuple[RequestTrace, ...]:
        """The request's trace, or those of its choices `<id>.0`, `<id>.1`, ...; empty if none."""
        choices = (RequestId(f"{request}.{index}") for index in range(MAX_CHOICES))
        exact = self._trace(request, now)
        if exact is not None:
            return (exact,)
        found = (self._trace(choice, now) for choice in choices)
        return tuple(trace for trace in found if trace is not None)

    def _trace(self, request: RequestId, now: float) -> RequestTrace | None:
        added_at, trace = self._traces.get(request, (0.0, None))
        return None if added_at < now - self.keep_s else trace

    def _oldest(self) -> float:
        return next(iter(self._traces.values()))[0]
