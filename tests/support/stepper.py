"""A scheduler on a fake runner, moved by hand: no thread, no clock, every interleaving possible.

`launch` and `complete` are the two halves of a step, so that commands can fall between them; at
depth 2 a second step may be launched before the first is complete. `step` does what the loop does.
`fetch` writes into reserved blocks as a transport would, also after the sequence was aborted.
"""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import pytest
from support.fake_runner import FakeRunner, FakeStep, continuation

from engine.batch import (
    AdapterId,
    RowsRead,
    SampledToken,
    ScoredRows,
    SequenceId,
    StepInput,
    StepReadings,
    StepTokens,
)
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.loans import LoanId
from engine.kvcache.prefix_cache import Entry, PrefixCache
from engine.kvcache.windows import NO_BLOCK, Window
from engine.limits import EngineLimits
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence_table import (
    SequenceAdmitted,
    SequenceComputed,
    SequenceEnded,
    SequenceFreed,
    SequencePulls,
    SequenceRead,
)
from engine.sequence import (
    FetchLanded,
    FetchLost,
    FetchOutcome,
    Mode,
    PullEnded,
    Sequence,
    SequenceState,
    Verdict,
)
from protocol.ids import BlockHash
from protocol.messages import Sampling
from protocol.readings import PromptReading

BLOCK_TOKENS = 4
EOS = 996
"""The last token of the fake vocabulary; rarely sampled."""


@dataclass(slots=True, eq=False)
class Run:
    """One submission and all that was heard of it."""

    sequence: Sequence
    tokens: list[int]
    """Prompt and given tokens: what was submitted."""
    num_given: int
    outputs: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    """Tokens of the prompt whose rows were read, in order."""
    verdicts: list[Verdict] = field(default_factory=list)
    admissions: int = 0
    leased_blocks: tuple[tuple[int, int], ...] = ()
    """HANDOVER: (block, generation) as they were shown; (-1, 0) what is not lent."""
    fetched_into: tuple[int, ...] = ()
    """REMOTE: the block table as the transport knows it."""
    fetch_over: bool = False
    pulled_into: tuple[int, ...] = ()
    """Of a beginning that is fetched: its blocks, as the transport knows them."""
    pull_end: int = 0
    pull_over: bool = False
    stop_at: int | None = None
    freed: bool = False
    lease_over: bool = False
    undisturbed: list[int] = field(default_factory=list)
    window: Window = None
    """What the model sees."""

    def expected(self, num_tokens: int) -> list[int]:
        """What an undisturbed run says first."""
        known = self.undisturbed
        if len(known) < num_tokens:
            known += continuation(
                [*self.tokens, *known],
                seed=self.sequence.sampling.seed,
                num_tokens=num_tokens - len(known),
                window=self.window,
            )
        return known[:num_tokens]


class RememberingCache(PrefixCache):
    """Of every block that it ever stored it knows the parent."""

    def __init__(
        self, blocks: BlockAllocator, *, block_tokens: int, compat: str, windows: Seq[Window]
    ) -> None:
        super().__init__(blocks, block_tokens=block_tokens, compat=compat, windows=windows)
        self.parents: dict[BlockHash, BlockHash | None] = {}
        """None of the first of a chain."""

    def store_entry(self, entry: Entry, *, instead_of: Entry | None) -> None:
        self.parents[entry.hash] = entry.parent if entry.index else None
        super().store_entry(entry, instead_of=instead_of)


class Stepper:
    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_running: int = 4,
        max_waiting: int = 100,
        token_budget: int = 8,
        max_context_tokens: int = 200,
        eos_token_ids: Seq[int] = (),
        windows: Seq[Window] = (None,),
        depth: int = 1,
    ) -> None:
        """`windows` of the KV groups; `depth` of the runner."""
        self.windows = tuple(windows)
        self.runner = FakeRunner(
            num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, windows=windows, depth=depth
        )
        self.suspects: list[SequenceId] = []
        """Of steps that failed, those not computed alone yet."""
        self.generations = [0] * num_blocks
        self.runner.generations = self.generations
        self.blocks = BlockAllocator(num_blocks, generations=self.generations)
        self.cache = RememberingCache(
            self.blocks, block_tokens=BLOCK_TOKENS, compat="test", windows=windows
        )
        self.scheduler = Scheduler(
            cache=self.cache,
            limits=EngineLimits(
                max_running=max_running,
                max_waiting=max_waiting,
                token_budget=token_budget,
                max_context_tokens=max_context_tokens,
            ),
            eos_token_ids=eos_token_ids,
        )
        self.runs: dict[SequenceId, Run] = {}
        self.in_flight: deque[FakeStep] = deque()
        """Launched and not complete, oldest first."""
        self.num_steps = 0
        self.loans: dict[LoanId, tuple[tuple[int, int], ...]] = {}
        """(block, generation) of each, as it was shown; none of one that is over."""
        self.quarantined: list[int] = []
        """Blocks that a transport may still write into though their fetch has ended."""

    # -- commands ---------------------------------------------------------------------------

    def submit(
        self,
        prompt: Seq[int],
        *,
        mode: Mode = Mode.LOCAL,
        max_tokens: int = 4,
        num_given: int = 0,
        seed: int = 1,
        salt: str = "",
        adapter: AdapterId | None = None,
        stop_at: int | None = None,
        penalty: float = 0.0,
        reading: PromptReading | None = None,
        sampling: Sampling | None = None,
        priority: int = 0,
        pull_tokens: int = 0,
        fork_of: Run | None = None,
    ) -> Run:
        """`num_given` of its tokens count as generated by an earlier worker. The fake model
        knows no penalty; the scheduler does."""
        name = SequenceId(f"s{len(self.runs)}")
        sampling = sampling or Sampling(
            seed=seed, max_tokens=max_tokens, ignore_eos=True, presence_penalty=penalty
        )
        window = self.runner.widest
        given = continuation(prompt, seed=sampling.seed, num_tokens=num_given, window=window)
        sequence = Sequence(
            id=name,
            prompt=tuple(prompt),
            outputs=list(given),
            sampling=sampling,
            mode=mode,
            priority=priority,
            reading=reading,
            pull_tokens=pull_tokens,
            fork_of=None if fork_of is None else fork_of.sequence.id,
            block_table=BlockTable(
                self.cache, salt=salt, adapter=adapter or "", lent=mode is Mode.HANDOVER
            ),
            adapter=adapter,
        )
        run = Run(sequence, [*prompt, *given], num_given, stop_at=stop_at, window=window)
        self.runs[name] = run
        self.scheduler.submit(sequence)
        self._hear()
        return run

    def abort(self, run: Run) -> None:
        self.scheduler.abort(run.sequence.id)
        self._hear()

    def release(self, run: Run) -> None:
        run.lease_over = True
        self.scheduler.release(run.sequence.id)
        self._hear()

    def fetch(self, run: Run, *, fraction: float = 1.0) -> None:
        """The transport writes that part of what the sequence lacks."""
        cached = run.sequence.num_cached or 0
        lacking = run.tokens[cached:]
        arrived = lacking[: int(len(lacking) * fraction)]
        self.runner.write(run.fetched_into, start=cached, tokens=arrived)

    def land(self, run: Run) -> None:
        self.fetch(run)
        self._fetch_done(run, FetchLanded(SampledToken(token_id=run.expected(1)[0])))

    def lose(self, run: Run, *, num_tokens: int = 0, quarantined: Seq[int] = ()) -> None:
        """`num_tokens` of it are there all the same: `fetch` has written them."""
        self.quarantined += quarantined
        self._fetch_done(run, FetchLost("source is gone", num_tokens, tuple(quarantined)))

    def pull(self, run: Run, *, fraction: float = 1.0) -> int:
        """The transport writes that part of the beginning; tokens that are there then, in whole
        blocks."""
        cached = run.sequence.num_cached or 0
        lacking = run.tokens[cached : run.pull_end]
        arrived = lacking[: int(len(lacking) * fraction)]
        self.runner.write(run.pulled_into, start=cached, tokens=arrived)
        num_tokens = cached + len(arrived)
        return num_tokens - num_tokens % BLOCK_TOKENS

    def end_pull(self, run: Run, *, num_tokens: int, quarantined: Seq[int] = ()) -> None:
        """`num_tokens` of it are there: `pull` has written them."""
        run.pull_over = True
        self.quarantined += quarantined
        self.scheduler.pull_done(run.sequence.id, PullEnded(num_tokens, tuple(quarantined)))
        self._settle()

    def lend(self, prompt: Seq[int], *, salt: str = "") -> tuple[int, ...]:
        """To a peer that asks for these tokens."""
        loan = LoanId(len(self.loans) + 1)
        seed = self.cache.seed(salt=salt)
        blocks = self.scheduler.lend(loan, seed=seed, token_ids=prompt).block_ids
        self.loans[loan] = tuple((block, self.generations[block]) for block in blocks)
        return blocks

    def end_loan(self, loan: LoanId) -> None:
        self.loans[loan] = ()
        self.scheduler.end_loan(loan)
        self._hear()

    def scribble(self, block: int) -> None:
        """The writer of a quarantined block writes once more: nothing that anybody asked for."""
        self.runner.pool[block] = [(0, 0)] * BLOCK_TOKENS

    def quiet(self, *blocks: int) -> None:
        """The writers of these have stopped."""
        for block in blocks:
            self.quarantined.remove(block)
        self.scheduler.quiet(blocks)
        self._hear()

    def _fetch_done(self, run: Run, outcome: FetchOutcome) -> None:
        run.fetch_over = True
        self.scheduler.fetch_done(run.sequence.id, outcome)
        self._settle()

    # -- one step ---------------------------------------------------------------------------

    @property
    def may_launch(self) -> bool:
        return len(self.in_flight) < self.runner.depth

    def launch(self) -> StepInput:
        batch = self.scheduler.schedule(now=float(self.num_steps + 1))
        self._hear()
        if batch:
            self.in_flight.append(self.runner.launch(batch))
        return batch

    def complete(self) -> None:
        """The oldest step."""
        step = self.in_flight.popleft()
        self.record(step.tokens(), step.readings())

    def record(self, sampled: StepTokens, readings: StepReadings | None = None) -> None:
        """Of the oldest step, already taken from those in flight: several tokens of a sequence, as
        the fake model gives none."""
        self.scheduler.record(sampled, readings)
        self.num_steps += 1
        self._settle()
        self.scheduler.check()

    def fail(self) -> None:
        """The oldest step fails; it and those behind it are undone."""
        self.runner.fail_tokens = 1
        with pytest.raises(RuntimeError):
            self.in_flight[0].tokens()
        self.suspects += [chunk.sequence for chunk in self.in_flight[0].chunks]
        for behind in list(self.in_flight)[1:]:
            behind.tokens()
        for _ in range(len(self.in_flight)):
            self.scheduler.undo_newest()
        self.in_flight.clear()
        self._hear()

    def fail_launch(self) -> None:
        """The next step fails before it is under way."""
        if batch := self.scheduler.schedule(now=float(self.num_steps + 1)):
            self.scheduler.undo_newest()
            self.suspects += [chunk.sequence for chunk in batch]
        self._hear()

    def repeat(self, *, fails: bool) -> StepInput:
        """The next suspect, alone."""
        suspect = self.suspects.pop(0)
        batch = self.scheduler.schedule_alone(suspect)
        if batch and fails:
            self.scheduler.undo_newest()
            self.scheduler.fail(suspect, "the fake model fails")
            self._hear()
        elif batch:
            self.in_flight.append(self.runner.launch(batch))
            self.complete()
        return batch

    def step(self) -> StepInput:
        batch = self.launch() if self.may_launch else ()
        if self.in_flight and (not batch or not self.may_launch):
            self.complete()
        return batch

    def run(self, max_steps: int = 1000) -> None:
        """Step until there is nothing to compute."""
        for _ in range(max_steps):
            busy = bool(self.in_flight)
            if not self.step() and not busy:
                return
        raise AssertionError(f"not idle after {max_steps} steps")

    # -- what was heard ---------------------------------------------------------------------

    def _settle(self) -> None:
        self._hear()
        while unsettled := self.scheduler.unsettled():
            stopped = set()
            for sequence, token in unsettled:
                run = self.runs[sequence.id]
                assert not run.verdicts, "a token after the ending"
                run.outputs.append(token.token_id)
                if run.stop_at is not None and len(sequence.outputs) >= run.stop_at:
                    stopped.add(sequence.id)
            self.scheduler.settle(stopped, now=float(self.num_steps + 1))
            self._hear()

    def _hear(self) -> None:
        for effect in self.scheduler.take_effects():
            run = self.runs[effect.sequence.id]
            match effect:
                case SequenceAdmitted():
                    run.admissions += 1
                    self._show_blocks(run)
                case SequencePulls(sequence, num_tokens):
                    assert not run.pulled_into, "it pulls twice"
                    run.pulled_into = tuple(sequence.block_table.blocks)
                    run.pull_end = num_tokens
                case SequenceComputed(_, num_tokens):
                    run.written.append(num_tokens)
                case SequenceRead(_, first, read):
                    run.reads += range(first, first + num_rows(read))
                    assert not run.outputs, "read after a token was said"
                case SequenceEnded(_, verdict):
                    run.verdicts.append(verdict)
                case SequenceFreed():
                    run.freed = True

    def _show_blocks(self, run: Run) -> None:
        """Somebody else knows these blocks from now on, whatever the engine does."""
        table = run.sequence.shown_blocks
        if run.sequence.mode is Mode.HANDOVER:
            run.leased_blocks = tuple(
                (block, 0 if block == NO_BLOCK else self.generations[block]) for block in table
            )
        if run.sequence.mode is Mode.REMOTE:
            run.fetched_into = table

    @property
    def fetches(self) -> list[Run]:
        """Whose blocks a transport may write into now."""
        return [r for r in self.runs.values() if r.fetched_into and not r.fetch_over]

    @property
    def pulls(self) -> list[Run]:
        """Into whose beginning a transport may write now."""
        return [r for r in self.runs.values() if r.pulled_into and not r.pull_over]

    @property
    def leases(self) -> list[Run]:
        """Whose blocks a peer may read now."""
        return [r for r in self.runs.values() if r.leased_blocks and not r.lease_over]

    def in_state(self, *states: SequenceState) -> list[Run]:
        return [run for run in self.runs.values() if run.sequence.state in states]

    @property
    def all_back(self) -> bool:
        counts = self.scheduler.block_counts()
        return counts.free + counts.cached == counts.total


def num_rows(read: RowsRead) -> int:
    return len(read.scores) if isinstance(read, ScoredRows) else read.num_rows
