"""How a request ends, as its router is told: the message, and its name in metrics and reasons."""

from collections.abc import Mapping, Sequence
from typing import assert_never

from engine.sequence import Abandon, Complete, Fail, HandOver, SequenceUsage, Verdict
from protocol.messages import Aborted, FailCode, Failed, Finished, OfAttempt, PrefillDone
from worker.requests import Job, RequestEnding

RETRYABLE: frozenset[FailCode] = frozenset({"overloaded", "source_lost", "internal", "broken"})
"""Another worker, or this one a moment later, may do what this one could not now."""

REMEDIES: Mapping[FailCode, str] = {
    "overloaded": "add workers, or raise max_waiting",
    "source_lost": "none, the router places it again; if it comes often see the source's log",
    "too_long": "none, unless the pool is smaller than the model's context: raise kv_blocks",
    "deadline": "add workers, or raise the routers' request_timeout_s",
    "invalid": "run routers and workers of one version on one model; if they are, report it",
    "internal": "report it with what this log says before it",
    "grammar": "none, the model's vocabulary cannot write what the request's grammar asks for",
    "broken": "none if a supervisor restarts it; if it comes often, report it with this log",
}
"""What an operator can do about failures."""


def ending_message(job: Job, verdict: Verdict, usage: SequenceUsage) -> RequestEnding:
    """The engine's verdict as the message that carries it."""
    request, attempt = job.request, job.attempt
    match verdict:
        case Complete(reason):
            return Finished(
                request=request,
                attempt=attempt,
                reason=reason,
                stopped_by=job.text.stopped_by if reason == "stop" else None,
                num_tokens=usage.num_tokens,
                cached_tokens=usage.cached_tokens,
                queued_s=usage.queued_s,
                prefill_s=usage.prefill_s,
                decode_s=usage.decode_s,
                pull=job.pull,
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
            return job.failure or failure(job, code, message, retryable=False if final else None)
        case Abandon():
            return job.failure or Aborted(request=request, attempt=attempt)
        case _:
            assert_never(verdict)


def failure(
    of: OfAttempt | Job, code: FailCode, message: str, *, retryable: bool | None = None
) -> Failed:
    return Failed(
        request=of.request,
        attempt=of.attempt,
        code=code,
        message=message,
        retryable=code in RETRYABLE if retryable is None else retryable,
    )


def nothing_left(job: Job, generated: Sequence[int]) -> RequestEnding:
    """The tokens that the client has end the text already; only the ending was missing."""
    usage = SequenceUsage(
        num_tokens=len(generated), cached_tokens=0, queued_s=0.0, prefill_s=0.0, decode_s=0.0
    )
    return ending_message(job, Complete("stop"), usage)


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
