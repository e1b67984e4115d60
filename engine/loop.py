"""The engine: one thread that runs a model for many sequences.

Commands come from any thread and return at once; what happens is told to the observer on the
engine thread. The engine knows no sockets, no text and no deadlines: who waits too long aborts.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, MutableSequence
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from threading import Thread, current_thread

from engine.batch import SequenceId, StepInput
from engine.commands import Inbox, PrefixToLend, SpareToHold, Submission
from engine.constraint import Constraint
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.loans import LoanId
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import Window
from engine.limits import EngineLimits
from engine.observer import EngineObserver
from engine.reporter import Reporter
from engine.runner.calibration import calibrate
from engine.runner.contract import Runner, StepHung
from engine.runner.unread import UnreadSteps, can_compute
from engine.sampling.grammar import AllowedTokens, Grammars
from engine.scheduling.in_flight import STEPS_AHEAD
from engine.scheduling.scheduler import Scheduler
from engine.sequence import (
    Abandon,
    Fail,
    FetchOutcome,
    Mode,
    PullEnded,
    Sequence,
    SequenceState,
    Verdict,
)
from engine.speeds.speedometer import Speedometer
from protocol.messages import Blocks, Load, StepModel

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Times in a row that a sequence may fail alone, and a step of nobody's after it, before the engine
gives up: it is not the input then."""
STATS_AGE_S = 0.05
"""A worker beats every 0.5 s; the counts are refreshed this often, and whenever idle."""


class EngineBroken(Exception):
    """The runner fails step after step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    blocks: Blocks
    load: Load
    prefill_tokens_per_s: float
    decode_step_s: float
    step: StepModel
    num_preempted: int
    num_forked: int
    num_counted: int
    """Submissions that `load` counts: so many of those accepted, the first ones."""


class Engine:
    """Start it, submit sequences, stop it. Every submission accepted gets exactly one ending."""

    def __init__(
        self,
        *,
        runner: Runner,
        limits: EngineLimits,
        eos_token_ids: Collection[int],
        compat: str,
        generations: MutableSequence[int],
        observer: EngineObserver,
        clock: Callable[[], float] = time.monotonic,
        check: bool = False,
        windows: Seq[Window] = (None,),
        dynamic_after: int | None = None,
        grammars: Grammars | None = None,
        calibration_s: float = 0.0,
    ) -> None:
        """`generations` has one counter per block; `check` looks for lost blocks when idle;
        `windows` are those of the KV groups, `dynamic_after` the model's; without `grammars` none
        is followed; for about `calibration_s` the thread measures steps of its own before it takes
        any command. Raises ValueError for another number of groups than the runner's layout has,
        fewer blocks than groups, or a runner deeper than STEPS_AHEAD."""
        _check_runner(runner, windows)
        self._runner, self._limits = runner, limits
        self._calibration_s = calibration_s
        self._observer = observer
        self._clock = clock
        self._check = check
        blocks = BlockAllocator(runner.num_blocks, generations=generations)
        self._cache = PrefixCache(
            blocks, block_tokens=runner.layout.block_tokens, compat=compat, windows=windows,
            dynamic_after=dynamic_after,
        )  # fmt: skip
        self._scheduler = Scheduler(cache=self._cache, limits=limits, eos_token_ids=eos_token_ids)
        self._reporter = Reporter(
            observer, scheduler=self._scheduler, cache=self._cache, generations=generations,
            clock=clock,
        )  # fmt: skip
        self.can_pull = len(windows) == 1 and not self._cache.windowed
        """And lend: of layers with windows only the end of a prefix is kept, so none can be."""
        self.is_prefix_closed = self._cache.is_prefix_closed
        """Whatever its block changes tell of, they tell of its parent too."""
        self.max_context_tokens = self._scheduler.max_context_tokens
        """Prompt and output of one sequence: the limit given, or the pool if that is smaller."""
        self._grammars = grammars
        self._inbox = Inbox(capacity=2 * limits.max_waiting + 64)
        self._speeds = Speedometer()
        self._steps = UnreadSteps(runner, speeds=self._speeds, clock=clock)
        self._turn_at: float | None = None
        self._suspects: deque[SequenceId] = deque()
        """Those of a failed step, each computed alone before anybody else is."""
        self._num_failures = self._num_submitted = 0
        self._stopping = False
        self._idle = False
        self._stats_at, self._stats = clock(), self._counted()
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    # -- any thread -------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, submission: Submission) -> None:
        """Queue a sequence. Raises CapacityError when stopped or flooded, ValueError for an empty
        prompt, an adapter, a grammar where none is followed, a pull where there is nothing to
        compute or layers see windows, a fork that is not LOCAL or reads, or an id in use; the
        observer is told nothing then."""
        if not submission.prompt:
            raise ValueError("prompt is empty; there is nothing to continue")
        if submission.adapter is not None:
            raise ValueError(f"adapter is {submission.adapter!r}; there is none but None")
        if submission.sampling.grammar is not None and self._grammars is None:
            raise ValueError("grammar: this engine follows none")
        if submission.pull_tokens and not (self.can_pull and submission.mode is not Mode.REMOTE):
            raise ValueError(f"pull_tokens: {submission.pull_tokens}, where none can be pulled")
        is_local = submission.mode is Mode.LOCAL and submission.reading is None
        if submission.fork_of is not None and not is_local:
            raise ValueError(f"fork_of: {submission.mode}, or with a reading; only LOCAL, without")
        self._inbox.submit(submission.id, self._accept, submission, self._clock())

    def abort(self, sequence: SequenceId) -> None:
        """End it soon. Its blocks still wait for its fetch or its lease to end."""
        self._inbox.tell(sequence, self._scheduler.abort)

    def fetch_done(self, sequence: SequenceId, outcome: FetchOutcome) -> None:
        """REMOTE: nobody writes into its blocks any more, but into those `outcome` quarantines."""
        self._inbox.tell(sequence, self._scheduler.fetch_done, outcome)

    def pull_done(self, sequence: SequenceId, ended: PullEnded) -> None:
        """What `EngineObserver.pull` asked for is over."""
        self._inbox.tell(sequence, self._scheduler.pull_done, ended)

    def lend(self, prefix: PrefixToLend) -> None:
        """Hold what is cached of a prefix, for a peer that fetches it, until `end_loan`."""
        self._inbox.put_command(self._lend, prefix)

    def hold_spare(self, spare: SpareToHold) -> None:
        """Hold a block of no contents until `end_loan`; where `can_pull`."""
        self._inbox.put_command(self._hold_spare, spare)

    def end_loan(self, loan: LoanId) -> None:
        """Nobody reads the blocks of a loan any more; an unknown one is no error."""
        self._inbox.put_command(self._scheduler.end_loan, loan)

    def quiet(self, blocks: tuple[int, ...]) -> None:
        """Nobody writes into these quarantined blocks any more: they may be used again."""
        self._inbox.put_command(self._scheduler.quiet, blocks)

    def release(self, sequence: SequenceId) -> None:
        """HANDOVER: the lease is over, nobody reads its blocks any more."""
        self._inbox.tell(sequence, self._scheduler.release)

    def stats(self) -> EngineStats:
        """At most 50 ms old while busy, exact when idle."""
        return self._stats

    def turn_s(self) -> float:
        """How long the thread has been at what it does now, a step at most; 0.0 while idle."""
        turn_at = self._turn_at
        return 0.0 if turn_at is None else self._clock() - turn_at

    def stop(self, timeout_s: float = 10.0) -> None:
        """Abort what still runs and end the thread, after the steps in flight."""
        self._inbox.close("the engine has stopped")
        self._inbox.put_command(self._begin_stop)
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join(timeout_s)
        if self._grammars is not None and not self._thread.is_alive():
            self._grammars.close()

    # -- the engine thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._calibration_s:
                self._calibrate()
            while not self._stopping:
                self._iterate()
            self._steps.await_all()
            self._end_all(Abandon())
        except Exception as error:
            log.exception("engine broken; the worker exits, start it again")
            self._inbox.close(f"the engine is broken: {error}")
            try:
                if not isinstance(error, StepHung):
                    self._steps.await_all()
                self._end_all(Fail("broken", f"the engine is broken: {error}"))
            finally:
                self._observer.broken(error)

    def _calibrate(self) -> None:
        self._turn_at = began_s = self._clock()
        steps = calibrate(
            self._runner, self._cache, limits=self._limits, within_s=self._calibration_s,
            clock=self._clock,
        )  # fmt: skip
        self._speeds.calibrate(steps)
        self._refresh_stats()
        took_s = round(self._clock() - began_s, 3)
        log.info("calibrated", extra={"steps": len(steps), "seconds": took_s})

    def _iterate(self) -> None:
        """Commands, then a step launched, then the oldest one's tokens, if as many are launched as
        may be or nothing can be; waits for a command when there is nothing to compute."""
        self._turn_at = None if self._idle else self._clock()
        commands = self._inbox.take_commands(wait=self._idle)
        self._turn_at = self._clock()
        for call, args in commands:
            call(*args)
        self._reporter.deliver()
        if self._stopping:
            return
        alone = bool(self._suspects)
        batch = self._next_suspect() if alone else self._scheduler.schedule(now=self._clock())
        self._reporter.deliver()
        self._idle = not (batch or self._steps or alone)
        if batch:
            self._launch(batch, alone=alone)
        elif self._check:
            self._scheduler.check()
        if self._steps and (not batch or self._steps.is_full):
            self._collect()
        if self._idle or self._reporter.freed or self._clock() - self._stats_at > STATS_AGE_S:
            self._refresh_stats()
        self._forget_freed()

    def _accept(self, submission: Submission, submitted_at: float) -> None:
        self._num_submitted += 1
        adapter, lent = submission.adapter or "", submission.mode is Mode.HANDOVER
        table = BlockTable(
            self._cache, salt=submission.salt, adapter=adapter, lent=lent,
            num_prompt=len(submission.prompt),
        )  # fmt: skip
        sampling, ids = submission.sampling, submission.sampling.allowed_token_ids
        sequence = Sequence(
            id=submission.id,
            prompt=submission.prompt,
            outputs=list(submission.generated),
            sampling=sampling,
            mode=submission.mode,
            reading=submission.reading,
            fork_of=submission.fork_of,
            pull_tokens=submission.pull_tokens,
            adapter=submission.adapter,
            priority=submission.priority,
            constraint=AllowedTokens.of(ids) if ids and sampling.grammar is None else None,
            block_table=table,
            submitted_at=submitted_at,
        )
        self._scheduler.submit(sequence)
        if sequence.state is SequenceState.COMPILING and self._grammars is not None:
            tell = partial(self._compiled, sequence.id)
            self._grammars.compile(sampling, submission.generated, tell=tell)

    def _lend(self, prefix: PrefixToLend) -> None:
        prefix.tell(self._scheduler.lend(prefix.loan, seed=prefix.seed, token_ids=prefix.token_ids))

    def _hold_spare(self, spare: SpareToHold) -> None:
        spare.tell(self._scheduler.hold_spare(spare.loan))

    def _compiled(self, sequence: SequenceId, outcome: Constraint | ValueError) -> None:
        """On a thread of the grammars."""
        told: Constraint | Fail
        if isinstance(outcome, ValueError):
            told = Fail("grammar", str(outcome), final=True)
        else:
            told = outcome
        self._inbox.tell(sequence, self._scheduler.compiled, told)

    def _begin_stop(self) -> None:
        self._stopping = True

    def _next_suspect(self) -> StepInput:
        """Once what was launched before the step that failed is read."""
        if self._steps:
            return ()
        return self._scheduler.schedule_alone(self._suspects.popleft())

    def _launch(self, batch: StepInput, *, alone: bool) -> None:
        try:
            if self._grammars is not None:
                self._grammars.begin_filling(batch)
            self._steps.launch(batch, alone=alone)
        except StepHung:
            raise
        except Exception as error:
            self._scheduler.undo_newest()
            self._suspect(batch, error, alone=alone)

    def _collect(self) -> None:
        """Wait for the oldest step and say what it brought."""
        step = self._steps.pop_oldest()
        try:
            sampled = step.launched.tokens()
            reads = any(chunk.read is not None for chunk in step.batch)
            readings = step.launched.readings() if reads else None
        except StepHung:
            raise
        except Exception as error:
            num_undone = 1 + len(self._steps)  # those behind it read what it did not write
            self._steps.await_all()
            for _ in range(num_undone):
                self._scheduler.undo_newest()
            self._suspect(step.batch, error, alone=step.alone)
            return
        self._num_failures = 0
        self._steps.measure(step)
        self._scheduler.record(sampled, readings)
        self._reporter.deliver()

    def _suspect(self, batch: StepInput, error: Exception, *, alone: bool) -> None:
        """Of a step that was undone. Nobody is blamed before it has failed alone."""
        failed = {"sequences": len(batch), "alone": alone}
        log.error("step failed; each of it is computed alone", exc_info=error, extra=failed)
        if not alone:
            return self._suspects.extend(chunk.sequence for chunk in batch)
        if can_compute(self._runner, self._cache):
            self._num_failures = 0
            self._scheduler.fail(batch[0].sequence, f"{type(error).__name__}: {error}")
            return self._reporter.deliver()
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            raise EngineBroken(f"{self._num_failures} steps in a row failed") from error
        return self._suspects.append(batch[0].sequence)

    def _end_all(self, verdict: Verdict) -> None:
        """The inbox is closed: whoever came through it gets an ending before the thread ends."""
        for call, args in self._inbox.take_commands(wait=False):
            if call == self._accept:
                call(*args)
        self._scheduler.end_all(verdict)
        self._reporter.deliver_last()
        self._refresh_stats()
        self._forget_freed()

    def _forget_freed(self) -> None:
        """Last, so that whoever waits for an id to be free finds it in the stats."""
        for sequence_id in self._reporter.freed:
            self._inbox.forget(sequence_id)
        self._reporter.freed.clear()

    def _refresh_stats(self) -> None:
        self._stats_at, self._stats = self._clock(), self._counted()

    def _counted(self) -> EngineStats:
        return EngineStats(
            blocks=self._scheduler.block_counts(),
            load=self._scheduler.load(),
            prefill_tokens_per_s=self._speeds.prefill.per_s,
            decode_step_s=self._speeds.decode_step_s,
            step=self._speeds.step,
            num_preempted=self._scheduler.num_preempted,
            num_forked=self._scheduler.num_forked,
            num_counted=self._num_submitted,
        )


def _check_runner(runner: Runner, windows: Seq[Window]) -> None:
    if runner.depth > STEPS_AHEAD:
        raise ValueError(f"depth: the runner's is {runner.depth}, at most {STEPS_AHEAD} work")
    if len(windows) != runner.layout.num_groups:
        raise ValueError(
            f"windows: of {len(windows)} KV groups, the layout has {runner.layout.num_groups}"
        )
