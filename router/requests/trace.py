"""What became of each recent request: route, reason, workers, blocks, transport, seconds.

Holds no prompt, no token and no text. Lost when the router ends.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from protocol.ids import RequestId, WorkerId

NUM_KEPT = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTrace:
    """One try on one pair of workers. Seconds are 0.0 for a leg that did not happen."""

    attempt: int
    reason: str
    """Why these workers: the text of the `x-baton-route` header."""
    prefill: WorkerId | None
    """None: the decode worker computed the prompt itself."""
    decode: WorkerId
    """Of a prompt that is read and no more, its one worker, whatever its role."""
    outcome: str = ""
    """`stop`, `length`, `aborted: ...`, or why the attempt was given up."""
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
    placed_s: float
    first_token_s: float
    """0.0 when there was no token."""
    total_s: float
    attempts: tuple[AttemptTrace, ...]


@dataclass(slots=True)
class TraceRing:
    """The last `num_kept` traces. Not thread-safe: one event loop owns it."""

    num_kept: int = NUM_KEPT
    _traces: OrderedDict[RequestId, RequestTrace] = field(default_factory=OrderedDict)

    def add(self, trace: RequestTrace) -> None:
        self._traces[trace.request] = trace
        self._traces.move_to_end(trace.request)
        while len(self._traces) > self.num_kept:
            self._traces.popitem(last=False)

    def find(self, request: RequestId) -> tuple[RequestTrace, ...]:
        """The request's trace, or those of its choices `<id>.0`, `<id>.1`, ...; empty if none."""
        exact = self._traces.get(request)
        if exact is not None:
            return (exact,)
        return tuple(
            trace
            for name, trace in self._traces.items()
            if name.startswith(f"{request}.") and name[len(request) + 1 :].isdigit()
        )
