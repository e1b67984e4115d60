"""How a request ends, as its router is told: the message, and its name in metrics and reasons."""

from typing import Protocol, assert_never

from engine.sequence import Abandon, Complete, Fail, HandOver, Usage, Verdict
from protocol.ids import RequestId
from protocol.messages import (
    Aborted,
    Decode,
    FailCode,
    Failed,
    Finished,
    Prefill,
    PrefillDone,
)

RequestEnding = Finished | Failed | Aborted | PrefillDone

RETRYABLE: frozenset[FailCode] = frozenset({"overloaded", "source_lost", "internal"})
"""Another worker, or this one a moment later, may do what this one could not now."""


class Attempt(Protocol):
    """What names one attempt at a request: a message of the router, or the job made of it."""

    @property
    def request(self) -> RequestId: ...

    @property
    def attempt(self) -> int: ...


def ending_message(
    of: Attempt, verdict: Verdict, usage: Usage, *, instead: Failed | None = None
) -> RequestEnding:
    """The engine's verdict as the message that carries it; `instead` of a failure or an abort, when
    the worker itself has asked for it and knows why."""
    request, attempt = of.request, of.attempt
    match verdict:
        case Complete(reason):
            return Finished(
                request=request,
                attempt=attempt,
                reason=reason,
                num_tokens=usage.num_tokens,
                cached_tokens=usage.cached_tokens,
                queued_s=usage.queued_s,
                prefill_s=usage.prefill_s,
                decode_s=usage.decode_s,
            )
        case HandOver():
            return PrefillDone(
                request=request,
                attempt=attempt,
                cached_tokens=usage.cached_tokens,
                queued_s=usage.queued_s,
                prefill_s=usage.prefill_s,
            )
        case Fail(code, message, final):
            return instead or failure(of, code, message, retryable=False if final else None)
        case Abandon():
            return instead or Aborted(request=request, attempt=attempt)
        case _:
            assert_never(verdict)


def failure(of: Attempt, code: FailCode, message: str, *, retryable: bool | None = None) -> Failed:
    return Failed(
        request=of.request,
        attempt=of.attempt,
        code=code,
        message=message,
        retryable=code in RETRYABLE if retryable is None else retryable,
    )


def nothing_left(message: Prefill | Decode) -> Finished:
    """The tokens that the client has end the text already; only the ending was missing."""
    return Finished(
        request=message.request,
        attempt=message.attempt,
        reason="stop",
        num_tokens=len(message.generated),
        cached_tokens=0,
        queued_s=0.0,
        prefill_s=0.0,
        decode_s=0.0,
    )


def ending_name(ending: RequestEnding) -> str:
    match ending:
        case Finished(reason=reason):
            return reason
        case Failed(code=code):
            return code
        case Aborted():
            return "aborted"
        case PrefillDone():
            return "handed_over"
        case _:
            assert_never(ending)
