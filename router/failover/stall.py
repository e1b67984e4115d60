"""Whether a request waits for a worker that stands still, or is merely in a busy fleet. Pure.

A process that was stopped says nothing, not even its beats, while its connection lives on. One
whose engine hangs goes on beating, and no sequence and no prompt of it advances. Where others
advance, a request may have to wait for its turn: only far beyond what was predicted is it lost.
"""

from dataclasses import dataclass
from typing import Literal

from protocol.ids import WorkerId

Awaited = Literal["first_token", "next_token"]

FACTOR = 5.0
"""Times what was predicted: a prompt beside others of a queue, and a step beside their chunks."""
BUSY_FACTOR = 4.0
"""Longer still for a worker on which others advance, and for a grammar, which is compiled first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StallLimits:
    """`router.settings` has the reasons."""

    silent_s: float = 2.0
    first_token_s: float = 10.0
    next_token_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What a request waits for."""

    worker: WorkerId
    """Whose turn it is to say something."""
    awaited: Awaited
    """Of this attempt."""
    since: float
    expected_s: float
    """As predicted when it was placed, or of its worker's steps."""
    is_streaming: bool
    """Its decode worker has said a token: no queue and no fetch is before the next one."""
    is_compiled: bool
    """It has a grammar, which takes its worker time beside the queue."""
    num_stalls: int
    """So far: each time it waits twice as long, so that no request runs from worker to worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastHeard:
    """A worker as heard of: when it last said anything, and last had advanced at anything."""

    heard_at: float
    advanced_at: float


def find_stall(wait: Wait, worker: LastHeard, *, limits: StallLimits, now: float) -> str | None:
    """Why it is not waited for any longer; None: it is."""
    waited_s, patience = now - wait.since, 2.0**wait.num_stalls
    quiet_s = now - worker.heard_at
    if min(waited_s, quiet_s) > limits.silent_s * patience:
        return f"{wait.worker} has said nothing for {quiet_s:.1f} s"
    least_s = limits.next_token_s if wait.is_streaming else limits.first_token_s
    limit_s = patience * max(least_s, FACTOR * wait.expected_s)
    if wait.is_compiled or now - worker.advanced_at < least_s:
        limit_s *= BUSY_FACTOR
    if waited_s <= limit_s:
        return None
    what = wait.awaited.replace("_", " ")
    return f"{wait.worker} owes the {what} since {waited_s:.1f} s, {wait.expected_s:.2f} s expected"
