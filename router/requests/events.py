"""What goes into `Dispatcher.generate` and what comes out: one request, its ending, its errors.

What comes in between is told to a `router.requests.token_listener.TokenListener`. Nothing here
knows HTTP.
"""

from dataclasses import dataclass, field

from protocol.errors import BatonError
from protocol.ids import RequestId, WorkerId
from protocol.messages import FailCode, FinishReason, Sampling, ServedVersion
from protocol.readings import PromptReading, TokenScore
from router.requests.ending import AlreadyEnded, ended_by_length
from router.requests.family import ForkFamily
from router.requests.trace import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, one choice. The caller has checked every range and the context length."""

    id: RequestId
    token_ids: tuple[int, ...]
    sampling: Sampling
    salt: str
    """Tenant's salt: prefixes of different salts never meet."""
    reading: PromptReading | None = None
    """What is said of the prompt besides what follows it."""
    deadline_s: float
    """Seconds from now until the request is given up, retries included."""
    priority: int = 0
    """The lower, the sooner it is served where not all can be."""
    tenant: str = ""
    """Whose turn it takes where requests wait; of tenants, `weight` to `weight`."""
    weight: float = 1.0
    session: str = ""
    """Requests of one go to the same workers while the load allows; "": of none."""
    family: ForkFamily | None = field(default=None, compare=False)
    """Of the choices of one prompt that go on from the first one's KV, and of that one."""
    is_first: bool = True
    """Of its family; the others have nothing read of their prompt."""
    version: ServedVersion | None = None
    """Only its workers take the request, retries included. None: whichever there are."""
    already_ended: AlreadyEnded = field(default=ended_by_length, repr=False)
    """By its version's text."""


class RouterEnds(BatonError):
    """This router ends now; another one can serve the request."""

    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    reason: str
    """Header-safe ASCII; the value of `x-baton-route`."""
    prefill: WorkerId | None
    """None: `decode` computes the prompt itself."""
    decode: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Tokens of the prompt. Several follow each other without a gap."""

    first: int
    """Index of the first one in the prompt."""
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    values: bytes
    """As `protocol.messages.PromptVector`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    finish_reason: FinishReason
    stopped_by: int | str | None = None
    """As of `protocol.messages.Finished`."""
    cached_tokens: int
    """Prompt tokens nobody computed for this request."""
    trace: RequestTrace


Read = Scored | Pooled


class NoWorkers(BatonError):
    """No worker may take the request; the message says what is missing. 503 with Retry-After."""

    retryable = True
    retry_after_s = 1.0


class VersionGone(NoWorkers):
    """The last decode worker of the request's version is gone, its client has been told nothing,
    and another version of the same model is served: prepare it again, for that one."""


class TooLong(BatonError):
    """No live worker's pool or context can ever hold the request; has the numbers. 400."""


class PoisonRequest(BatonError):
    """Workers were lost with this request as the last that they had been given. 500."""


class RequestFailed(BatonError):
    """The request was given up: the message has the reason of every attempt.

    `code` "deadline" is the client's time running out (504), "overloaded" a client that reads
    too slowly, anything else ours (500, 503 if retryable).
    """

    def __init__(self, message: str, *, code: FailCode, retryable: bool = False) -> None:
        super().__init__(message)
        self.code: FailCode = code
        self.retryable = retryable


class RetriesSpent(BatonError):
    """Its worker was lost, and so many others were that no attempt is repeated now. 503 with
    Retry-After."""

    retryable = True
    retry_after_s = 1.0


class SlowClient(RequestFailed):
    """Too much of an answer waits for its client."""

    def __init__(self, *, num_bytes: int) -> None:
        why = f"the client reads more slowly than the model writes: {num_bytes} bytes wait for it"
        super().__init__(why, code="overloaded")
