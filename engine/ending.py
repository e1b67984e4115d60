"""The last word about a sequence, in four forms. Made by `engine.loop` from a verdict and the
stamps of the clock; passed to the observer, whose services put it into a message."""

from dataclasses import dataclass

from engine.sequence import Cancel, Complete, Fail, HandOver, Sequence
from protocol.messages import FailCode, FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    reason: FinishReason
    num_tokens: int
    """Outputs, those given at submission included."""
    cached_tokens: int
    """Prompt tokens this engine found in its prefix cache."""
    queued_s: float
    prefill_s: float
    """From admission to the first token; for REMOTE the time of the fetch."""
    decode_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """HANDOVER: the token is out and the blocks wait for `Engine.release`."""

    cached_tokens: int
    queued_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    code: FailCode
    message: str
    final: bool = False
    """Another worker would fail as well, whatever the code says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    pass


EngineEnding = Finished | HandedOver | Failed | Aborted


def ending_of(sequence: Sequence, *, now: float) -> EngineEnding:
    """Verdict and stamps as the observer's word."""
    cached = min(sequence.num_cached or 0, len(sequence.prompt))
    admitted = sequence.admitted_at or now
    first = sequence.first_token_at or now
    queued_s, prefill_s = admitted - sequence.submitted_at, first - admitted
    match sequence.verdict:
        case Complete(reason):
            return Finished(
                reason=reason,
                num_tokens=len(sequence.outputs),
                cached_tokens=cached,
                queued_s=queued_s,
                prefill_s=prefill_s,
                decode_s=now - first,
            )
        case HandOver():
            return HandedOver(cached_tokens=cached, queued_s=queued_s, prefill_s=prefill_s)
        case Fail(code, message, final):
            return Failed(code=code, message=message, final=final)
        case Cancel():
            return Aborted()
        case None:
            raise AssertionError(f"sequence {sequence.id} ended without a verdict")
