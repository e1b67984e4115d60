"""Prefixes that this worker fetches from the prefix caches of others, so as not to compute them.

A request never fails for one: whatever does not come is computed. Begun on the engine's thread,
ended on the sink's.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from engine.loop import Engine
from engine.observer import PrefixToPull
from engine.sequence import PullEnded
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.messages import MAX_BORROWED_TOKENS
from kvtransfer.sink.sink import Sink
from protocol.errors import CapacityError, NotLent
from protocol.messages import PrefixPull, PullOutcome, StepModel
from worker.requests import Job, Key
from worker.transfers.fetch_metrics import FetchMetrics
from worker.transfers.quarantine import Quarantine

log = logging.getLogger(__name__)

MIN_PULL_S: Final = 0.25
"""A pull may take this long though computing would be done sooner: whoever placed the request knew
both speeds, and the first fetch from a peer opens a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullLimits:
    max_pulls: int
    """At once; 0: none."""
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pulling:
    job: Job
    prefix: PrefixToPull
    began_s: float
    ends_s: float


def pull_deadline_s(tokens: range, *, step: StepModel, timeout_s: float) -> float:
    """Seconds that a pull of these tokens may take: what computing them would, as far as that is
    known, so that a pull that fails costs no more than as much again."""
    attended = (tokens.stop**2 - tokens.start**2) / 2
    compute_s = step.token_s * len(tokens) + step.attended_s * attended
    return min(timeout_s, max(MIN_PULL_S, compute_s)) if compute_s else timeout_s


class PrefixPulls:
    """Those of one worker. Each job's result is its `Job.pull`."""

    def __init__(
        self,
        *,
        sink: Sink,
        engine: Engine,
        limits: PullLimits,
        block_tokens: int,
        metrics: FetchMetrics,
        quarantine: Quarantine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._engine = engine
        self._limits = limits
        self._block_tokens = block_tokens
        self._metrics = metrics
        self._quarantine = quarantine
        self._clock = clock
        self._pulling: dict[Key, Job] = {}

    def keys(self) -> list[Key]:
        """Requests whose prefix is on its way."""
        return list(self._pulling)

    def num_tokens(self, job: Job) -> int:
        """Those of its first that the engine is to ask for: 0 where there is nobody to ask."""
        if job.prefix_source is None:
            return 0
        if not self._limits.max_pulls or not self._engine.can_pull:
            why = "max_pulls is 0" if self._engine.can_pull else "its layers see windows"
            self._settle(job, "refused", why=why)
            return 0
        return min(job.prefix_source.num_tokens, MAX_BORROWED_TOKENS)

    def start_pull(self, job: Job, prefix: PrefixToPull) -> None:
        """Fetch what is still there; the engine hears when that is over."""
        source = job.prefix_source
        assert source is not None
        if len(self._pulling) >= self._limits.max_pulls:
            self._refuse(job, prefix, f"{len(self._pulling)} others are under way")
            return
        missing = range(prefix.first_block * self._block_tokens, len(prefix.token_ids))
        step, timeout_s = self._engine.stats().step, self._limits.timeout_s
        deadline_s = pull_deadline_s(missing, step=step, timeout_s=timeout_s)
        began_s = self._clock()
        pulling = _Pulling(job=job, prefix=prefix, began_s=began_s, ends_s=began_s + deadline_s)
        self._pulling[job.key] = job
        try:
            job.fetch = self._sink.pull(
                source,
                seed=prefix.seed,
                token_ids=prefix.token_ids,
                hashes=prefix.hashes,
                first_block=prefix.first_block,
                block_ids=prefix.block_ids,
                deadline_s=deadline_s,
                on_end=partial(self._ended, pulling),
            )
        except (CapacityError, ValueError) as error:
            del self._pulling[job.key]
            self._refuse(job, prefix, str(error))

    def cancel_pull(self, key: Key, reason: str) -> None:
        """It is not wanted any more; none under way is no error."""
        job = self._pulling.get(key)
        if job is not None and job.fetch is not None:
            self._sink.cancel(job.fetch, reason=reason)

    def _refuse(self, job: Job, prefix: PrefixToPull, why: str) -> None:
        self._settle(job, "refused", why=why)
        self._engine.pull_done(job.sequence, PullEnded(prefix.first_block * self._block_tokens))

    # -- the sink's thread ------------------------------------------------------------------

    def _ended(self, pulling: _Pulling, end: FetchEnd) -> None:
        """Nobody writes into the blocks any more, but into those that the end quarantines."""
        job, prefix, now_s = pulling.job, pulling.prefix, self._clock()
        outcome, why, num_blocks = self._outcome(pulling, end, now_s)
        num_tokens = num_blocks * self._block_tokens
        self._settle(job, outcome, num_tokens=num_tokens, seconds=now_s - pulling.began_s, why=why)
        assert job.prefix_source is not None
        self._metrics.pull_ended(end, peer=job.prefix_source.worker)
        quarantined = () if isinstance(end, Landed) else end.quarantined
        self._quarantine.hold(quarantined)
        self._pulling.pop(job.key, None)
        num_there = (prefix.first_block + num_blocks) * self._block_tokens
        self._engine.pull_done(job.sequence, PullEnded(num_there, quarantined))

    def _outcome(
        self, pulling: _Pulling, end: FetchEnd, now_s: float
    ) -> tuple[PullOutcome, str, int]:
        """What became of it, why, and how many blocks came, in order."""
        match end:
            case Landed():
                return "landed", end.transport_why, end.num_blocks
            case Lost(NotLent() as error):
                return "declined", str(error), 0
            case Lost(error):
                outcome: PullOutcome = "late" if now_s >= pulling.ends_s else "lost"
                return outcome, f"{type(error).__name__}: {error}", _num_first(pulling, end)
            case Aborted(reason):
                return "aborted", reason, _num_first(pulling, end)
            case _:
                assert_never(end)

    def _settle(
        self,
        job: Job,
        outcome: PullOutcome,
        *,
        why: str,
        num_tokens: int = 0,
        seconds: float = 0.0,
    ) -> None:
        source = job.prefix_source
        assert source is not None
        job.pull = PrefixPull(
            source=source.worker, num_tokens=num_tokens, seconds=seconds, outcome=outcome
        )
        self._metrics.pulled(job.pull)
        told = {"request": job.request, "source": source.worker, "outcome": outcome, "why": why}
        log.info("prefix pulled", extra={**told, "tokens": num_tokens, "seconds": seconds})


def _num_first(pulling: _Pulling, end: Lost | Aborted) -> int:
    """Blocks that arrived and were verified, from the first one wanted on, without a gap."""
    landed, first = frozenset(end.landed), pulling.prefix.first_block
    places = range(len(pulling.prefix.block_ids))
    return next((n for n in places if first + n not in landed), len(places))
