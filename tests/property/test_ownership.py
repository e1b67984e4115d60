"""Random lives of many sequences on one small pool; who owns what is checked after every step.

The runner's KV is the tokens themselves, the fetches keep writing after an abort and the leases
are read until they end: a block freed too early, freed twice or lost cannot hide.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.kvcache.loans import LOAN_SHARE
from engine.kvcache.windows import NO_BLOCK, Window
from engine.sequence import Complete, Fail, HandOver, Mode
from protocol.blocks import block_hashes
from protocol.ids import BlockHash
from protocol.readings import PoolPrompt, PromptReading, ScorePrompt, rows_of

MAX_CONTEXT = 44
STEM = list(range(100, 140))

READINGS: tuple[PromptReading | None, ...] = (
    None, None, ScorePrompt(), ScorePrompt(first=6), PoolPrompt(kind="mean"),
)  # fmt: skip
prompts = st.builds(
    lambda shared, own: STEM[:shared] + [7] * own,
    st.integers(0, 30),
    st.integers(1, 6),
)


class Ownership(RuleBasedStateMachine):
    num_blocks = 12
    windows: tuple[Window, ...] = (None,)
    depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.stepper = Stepper(
            num_blocks=self.num_blocks,
            max_running=4,
            max_waiting=5,
            max_context_tokens=MAX_CONTEXT,
            windows=self.windows,
            depth=self.depth,
        )
        self.replica: set[BlockHash] = set()
        """What a router knows from the events alone."""

    # -- what clients, peers and the model do -----------------------------------------------

    @rule(
        prompt=prompts,
        mode=st.sampled_from(Mode),
        max_tokens=st.sampled_from((0, 1, 3, 8, 40)),
        num_given=st.sampled_from((0, 0, 1, 3)),
        seed=st.integers(1, 2),
        salt=st.sampled_from(("", "", "tenant")),
        stop_at=st.none() | st.integers(1, 12),
        penalty=st.sampled_from((0.0, 0.0, 0.5)),
        priority=st.sampled_from((0, 0, -1, 2)),
        reading=st.sampled_from(READINGS),
        pull_tokens=st.sampled_from((0, 0, 4, 12, 30)),
    )
    def submit(
        self,
        prompt: list[int],
        mode: Mode,
        max_tokens: int,
        num_given: int,
        seed: int,
        salt: str,
        stop_at: int | None,
        penalty: float,
        priority: int,
        reading: PromptReading | None,
        pull_tokens: int,
    ) -> None:
        may_pull = self.windows == (None,) and mode is not Mode.REMOTE
        if mode is not Mode.LOCAL:
            max_tokens = max(1, max_tokens)
        self.stepper.submit(
            prompt,
            mode=mode,
            max_tokens=max_tokens,
            num_given=num_given if max_tokens else 0,
            seed=seed,
            salt=salt,
            stop_at=stop_at,
            penalty=penalty,
            priority=priority,
            reading=None if mode is Mode.REMOTE else reading,
            pull_tokens=pull_tokens if may_pull else 0,
        )

    @rule(prompt=prompts, modes=st.tuples(st.sampled_from(Mode), st.sampled_from(Mode)))
    def submit_the_same_prompt_twice(self, prompt: list[int], modes: tuple[Mode, Mode]) -> None:
        """Both compute it, or fetch it, before either can share it."""
        for mode in modes:
            self.stepper.submit(prompt, mode=mode)

    @precondition(lambda self: self.stepper.runs)
    @rule(data=st.data(), max_tokens=st.sampled_from((1, 3, 8)), seed=st.integers(1, 9))
    def fork(self, data: st.DataObject, max_tokens: int, seed: int) -> None:
        """Also of one that has ended, that is no origin for it, or that forks itself."""
        origin = data.draw(st.sampled_from(list(self.stepper.runs.values())[-3:]))
        self.stepper.submit(
            origin.sequence.prompt, max_tokens=max_tokens, seed=seed, fork_of=origin
        )

    @precondition(lambda self: self.stepper.may_launch)
    @rule()
    def launch(self) -> None:
        self.stepper.launch()

    @precondition(lambda self: self.stepper.in_flight)
    @rule()
    def complete(self) -> None:
        self.stepper.complete()

    @precondition(lambda self: self.stepper.may_launch)
    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.stepper.step()

    @precondition(lambda self: self.stepper.in_flight)
    @rule()
    def fail(self) -> None:
        self.stepper.fail()

    @precondition(lambda self: self.stepper.may_launch)
    @rule()
    def fail_launch(self) -> None:
        self.stepper.fail_launch()

    @precondition(lambda self: self.stepper.suspects and not self.stepper.in_flight)
    @rule(fails=st.booleans())
    def repeat_alone(self, fails: bool) -> None:
        self.stepper.repeat(fails=fails)

    @precondition(lambda self: self.stepper.may_launch)
    @rule(data=st.data())
    def mute(self, data: st.DataObject) -> None:
        """The model answers no number for some sequence from now on."""
        runs = [r for r in self.stepper.runs.values() if not r.verdicts]
        if runs:
            self.stepper.runner.mute.add(data.draw(st.sampled_from(runs)).sequence.id)

    @precondition(lambda self: self.stepper.runs)
    @rule(data=st.data())
    def abort_any(self, data: st.DataObject) -> None:
        """Also those that have ended, and those aborted before."""
        self.stepper.abort(data.draw(st.sampled_from(list(self.stepper.runs.values()))))

    @precondition(lambda self: self.stepper.in_flight)
    @rule(data=st.data())
    def abort_in_flight(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.stepper.in_flight))
        chunk = data.draw(st.sampled_from(flight.chunks))
        self.stepper.abort(self.stepper.runs[chunk.sequence])

    @precondition(lambda self: self.stepper.fetches)
    @rule(data=st.data(), fraction=st.floats(0, 1))
    def write_into_reserved_blocks(self, data: st.DataObject, fraction: float) -> None:
        self.stepper.fetch(data.draw(st.sampled_from(self.stepper.fetches)), fraction=fraction)

    @precondition(lambda self: self.stepper.fetches)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        self.stepper.land(data.draw(st.sampled_from(self.stepper.fetches)))

    @precondition(lambda self: self.stepper.fetches)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.stepper.lose(data.draw(st.sampled_from(self.stepper.fetches)))

    @precondition(lambda self: self.stepper.fetches)
    @rule(data=st.data(), fraction=st.floats(0, 1))
    def lose_in_part(self, data: st.DataObject, fraction: float) -> None:
        """Some blocks arrived; into some of the others the writer still writes."""
        run = data.draw(st.sampled_from(self.stepper.fetches))
        self.stepper.fetch(run, fraction=fraction)
        cached = run.sequence.num_cached or 0
        arrived = cached + int((len(run.tokens) - cached) * fraction)
        first = arrived // BLOCK_TOKENS * len(self.windows)
        lacking = [block for block in run.fetched_into[first:] if block != NO_BLOCK]
        quarantined = data.draw(st.sets(st.sampled_from(lacking))) if lacking else ()
        self.stepper.lose(run, num_tokens=arrived, quarantined=sorted(quarantined))

    @precondition(lambda self: self.stepper.pulls)
    @rule(data=st.data(), fraction=st.floats(0, 1))
    def write_into_a_beginning(self, data: st.DataObject, fraction: float) -> None:
        self.stepper.pull(data.draw(st.sampled_from(self.stepper.pulls)), fraction=fraction)

    @precondition(lambda self: self.stepper.pulls)
    @rule(data=st.data(), fraction=st.sampled_from((0.0, 0.4, 1.0)), late=st.booleans())
    def end_a_pull(self, data: st.DataObject, fraction: float, late: bool) -> None:
        """Some of it has come; into some of the rest somebody may write on."""
        run = data.draw(st.sampled_from(self.stepper.pulls))
        num_tokens = self.stepper.pull(run, fraction=fraction)
        cached = run.sequence.num_cached or 0
        first = max(num_tokens, cached) // BLOCK_TOKENS
        lacking = list(run.pulled_into[first : run.pull_end // BLOCK_TOKENS])
        quarantined = data.draw(st.sets(st.sampled_from(lacking))) if lacking and late else ()
        self.stepper.end_pull(run, num_tokens=num_tokens, quarantined=sorted(quarantined))

    @precondition(lambda self: self.windows == (None,) and len(self.stepper.loans) < 6)
    @rule(prompt=prompts)
    def lend_to_a_peer(self, prompt: list[int]) -> None:
        self.stepper.lend(prompt)

    @precondition(lambda self: self.stepper.loans)
    @rule(data=st.data())
    def end_a_loan(self, data: st.DataObject) -> None:
        """Also one that is over."""
        self.stepper.end_loan(data.draw(st.sampled_from(sorted(self.stepper.loans))))

    @precondition(lambda self: self.stepper.quarantined)
    @rule(data=st.data())
    def scribble_into_quarantine(self, data: st.DataObject) -> None:
        """A late write, as of a NIC that cannot be called back: it must hit nobody."""
        self.stepper.scribble(data.draw(st.sampled_from(self.stepper.quarantined)))

    @precondition(lambda self: self.stepper.quarantined)
    @rule(data=st.data())
    def a_writer_stops(self, data: st.DataObject) -> None:
        self.stepper.quiet(data.draw(st.sampled_from(self.stepper.quarantined)))

    @precondition(lambda self: self.stepper.leases)
    @rule(data=st.data())
    def end_a_lease(self, data: st.DataObject) -> None:
        """Released after the ending, or expired in the middle of the prefill."""
        self.stepper.release(data.draw(st.sampled_from(self.stepper.leases)))

    # -- what must hold after each of them --------------------------------------------------

    @invariant()
    def every_block_is_held_by_exactly_those_who_say_so(self) -> None:
        self.stepper.scheduler.check()
        counts = self.stepper.scheduler.block_counts()
        owned = self.stepper.blocks.num_owned
        assert counts.free + counts.cached + owned == counts.total == self.num_blocks
        assert counts.leased <= owned

    @invariant()
    def nobody_else_owns_a_block_under_a_write(self) -> None:
        for run in self.stepper.fetches:
            first = (run.sequence.num_cached or 0) // BLOCK_TOKENS * len(self.windows)
            for block in run.fetched_into[first:]:
                assert block == NO_BLOCK or self.stepper.blocks.refs(block) == 1
        for run in self.stepper.pulls:
            cached = (run.sequence.num_cached or 0) // BLOCK_TOKENS
            for block in run.pulled_into[cached : run.pull_end // BLOCK_TOKENS]:
                assert self.stepper.blocks.refs(block) == 1
        for block in self.stepper.quarantined:
            assert self.stepper.blocks.refs(block) == 1

    @invariant()
    def a_block_on_loan_keeps_its_contents(self) -> None:
        lent = [pair for blocks in self.stepper.loans.values() for pair in blocks]
        assert all(self.stepper.generations[block] == generation for block, generation in lent)
        assert len(lent) <= self.num_blocks // LOAN_SHARE

    @invariant()
    def a_leased_block_keeps_its_contents(self) -> None:
        for run in self.stepper.leases:
            for block, generation in run.leased_blocks:
                assert block == NO_BLOCK or self.stepper.generations[block] == generation
            written = max(run.written, default=0)
            table = [block for block, _ in run.leased_blocks]
            for group, first in enumerate(self.stepper.cache.groups.first_rows(len(run.tokens))):
                start = first * BLOCK_TOKENS
                read = self.stepper.runner.read(table, num_tokens=written, start=start, group=group)
                assert read == run.tokens[start:written]

    @invariant()
    def nobody_holds_what_its_windows_have_left_behind(self) -> None:
        for run in self.stepper.runs.values():
            sequence = run.sequence
            firsts = self.stepper.cache.groups.first_rows(
                sequence.block_table.num_sealed * BLOCK_TOKENS
            )
            for group, first in enumerate(firsts):
                held = sequence.block_table.blocks[group :: len(firsts)][:first]
                assert set(held) <= {NO_BLOCK}

    @invariant()
    def tokens_are_those_of_an_undisturbed_run(self) -> None:
        for run in self.stepper.runs.values():
            assert run.outputs == run.expected(len(run.outputs))
            assert len(run.verdicts) <= 1
            assert run.admissions <= 1

    @invariant()
    def the_events_tell_what_the_cache_holds(self) -> None:
        for change in self.stepper.cache.take_changes():
            hashes = set(change.hashes)
            if change.kind == "stored":
                assert not self.replica & hashes
                self.replica |= hashes
            else:
                assert change.kind == "evicted" and hashes <= self.replica
                self.replica -= hashes
            if self.stepper.cache.is_prefix_closed:
                parents = {self.stepper.cache.parents[block] for block in self.replica}
                assert parents <= {None, *self.replica}, "a block is told of without its parent"
        assert self.replica == self.stepper.cache.stored_hashes

    def teardown(self) -> None:
        """When everybody lets go, everything returns and every request has had its ending."""
        for _ in range(200):
            for run in self.stepper.fetches:
                self.stepper.land(run)
            for run in self.stepper.pulls:
                self.stepper.end_pull(run, num_tokens=self.stepper.pull(run))
            for loan in self.stepper.loans:
                self.stepper.end_loan(loan)
            for run in self.stepper.leases:
                self.stepper.release(run)
            self.stepper.quiet(*self.stepper.quarantined)
            busy = bool(self.stepper.in_flight)
            busy = bool(self.stepper.step()) or busy
            open_ones = self.stepper.fetches or self.stepper.leases or self.stepper.pulls
            if not (busy or open_ones):
                break
        for run in self.stepper.runs.values():
            self._check_ending(run)
        self.every_block_is_held_by_exactly_those_who_say_so()
        assert self.stepper.all_back
        taken = self.stepper.cache.allocate_blocks(self.num_blocks)
        assert len(set(taken)) == self.num_blocks

    def _check_ending(self, run: Run) -> None:
        assert run.freed and len(run.verdicts) == 1
        sampling, count = run.sequence.sampling, run.num_given + len(run.outputs)
        match run.verdicts[0]:
            case Complete("length"):
                full = len(run.tokens) + len(run.outputs) == MAX_CONTEXT
                assert count == sampling.max_tokens or full or not run.outputs
            case Complete("stop"):
                assert run.stop_at is not None and run.stop_at <= count
            case HandOver():
                assert len(run.outputs) == 1 and run.sequence.mode is Mode.HANDOVER
            case Fail("overloaded" | "too_long"):
                assert not run.admissions
            case Fail("source_lost"):
                assert run.sequence.mode is Mode.REMOTE or not run.admissions
        if run.outputs and run.sequence.mode is not Mode.HANDOVER:
            self._check_chain(run)
        self._check_reads(run)

    def _check_reads(self, run: Run) -> None:
        """Each row that was asked for once and in order, all of them before a good ending."""
        reading, num_prompt = run.sequence.reading, len(run.sequence.prompt)
        asked = [] if reading is None else list(rows_of(reading, num_prompt=num_prompt))
        assert run.reads == asked[: len(run.reads)]
        if run.admissions and isinstance(run.verdicts[0], Complete | HandOver):
            assert run.reads == asked

    def _check_chain(self, run: Run) -> None:
        """The hashes the cache uses are those the router computes."""
        tokens = [*run.tokens, *run.outputs]
        chain = run.sequence.block_table.chain
        expected = block_hashes(tokens, block_tokens=BLOCK_TOKENS, seed=chain[0])
        assert chain[1:] == expected[: len(chain) - 1]


class OwnershipInTwoGroups(Ownership):
    """Layers that see all, and layers that see two and a half blocks."""

    num_blocks = 24
    windows = (None, 10)


class OwnershipInAWindow(Ownership):
    """No layer sees more than a block and a half: a sequence may be longer than the pool."""

    num_blocks = 10
    windows = (6,)


class OwnershipWithStepsAhead(Ownership):
    """The next step is launched before the tokens of the last are read."""

    depth = 2


class OwnershipInTwoGroupsWithStepsAhead(OwnershipInTwoGroups):
    depth = 2


SETTINGS = settings(
    max_examples=48,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestOwnership = Ownership.TestCase
TestOwnershipInTwoGroups = OwnershipInTwoGroups.TestCase
TestOwnershipInAWindow = OwnershipInAWindow.TestCase
TestOwnershipWithStepsAhead = OwnershipWithStepsAhead.TestCase
TestOwnershipInTwoGroupsWithStepsAhead = OwnershipInTwoGroupsWithStepsAhead.TestCase
TestOwnership.settings = SETTINGS
TestOwnershipInTwoGroups.settings = SETTINGS
TestOwnershipInAWindow.settings = SETTINGS
TestOwnershipWithStepsAhead.settings = SETTINGS
TestOwnershipInTwoGroupsWithStepsAhead.settings = SETTINGS
