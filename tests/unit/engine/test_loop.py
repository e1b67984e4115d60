import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import pytest
from support.eventually import eventually
from support.fake_runner import FakeRunner, FakeStep, continuation
from support.observed import RecordingObserver

from engine.batch import AdapterId, Chunk, SampledToken, SequenceId
from engine.commands import Submission
from engine.kvcache.windows import NO_BLOCK, Window
from engine.limits import EngineLimits
from engine.loop import MAX_FAILURES, Engine, EngineBroken
from engine.runner.contract import StepHung
from engine.sequence import Abandon, Complete, Fail, FetchLanded, FetchLost, HandOver, Mode
from protocol.errors import CapacityError
from protocol.messages import Sampling

A, B = SequenceId("a"), SequenceId("b")
PROMPT = list(range(1, 11))


class Bench:
    """An engine on a fake runner, with its observer."""

    def __init__(
        self,
        *,
        num_blocks: int = 32,
        max_waiting: int = 8,
        clock: Callable[[], float] = time.monotonic,
        depth: int = 1,
        windows: Sequence[Window] = (None,),
        runner: type[FakeRunner] = FakeRunner,
    ) -> None:
        self.runner = runner(num_blocks=num_blocks, depth=depth, windows=windows)
        self.runner.generations = [0] * num_blocks
        self.observer = RecordingObserver()
        self.engine = Engine(
            runner=self.runner,
            limits=EngineLimits(
                max_running=4, max_waiting=max_waiting, token_budget=8, max_context_tokens=96
            ),
            eos_token_ids=(),
            compat="test",
            generations=self.runner.generations,
            observer=self.observer,
            clock=clock,
            check=True,
            windows=windows,
        )

    def submit(
        self,
        sequence: SequenceId = A,
        *,
        prompt: list[int] = PROMPT,
        max_tokens: int = 6,
        mode: Mode = Mode.LOCAL,
    ) -> None:
        sampling = Sampling(seed=1, max_tokens=max_tokens)
        self.engine.submit(Submission(id=sequence, prompt=prompt, sampling=sampling, mode=mode))

    def wait_end(self, sequence: SequenceId = A) -> None:
        eventually(lambda: sequence in self.observer.endings)

    def accepts(self, sequence: SequenceId) -> bool:
        try:
            self.submit(sequence)
        except ValueError:
            return False
        return True

    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total


@pytest.fixture(params=[1, 2])
def depth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def bench(depth: int) -> Iterator[Bench]:
    bench = Bench(depth=depth)
    bench.engine.start()
    yield bench
    bench.engine.stop()
    assert not bench.observer.errors


def test_a_sequence_runs_to_its_last_token(bench: Bench) -> None:
    bench.submit()
    bench.wait_end()
    assert bench.observer.tokens[A] == continuation(PROMPT, seed=1, num_tokens=6)
    ending = bench.observer.endings[A]
    assert isinstance(ending, Complete)
    assert (ending.reason, bench.observer.usages[A].num_tokens) == ("length", 6)
    eventually(bench.all_back)


def test_an_engine_that_has_gone_idle_wakes_for_the_next_sequence(bench: Bench) -> None:
    for sequence in (A, B):
        bench.submit(sequence)
        bench.wait_end(sequence)
    assert bench.observer.tokens[A] == bench.observer.tokens[B]
    assert bench.observer.admissions[B].num_cached_tokens == 8


def test_a_handover_keeps_its_blocks_until_it_is_released(bench: Bench) -> None:
    bench.submit(mode=Mode.HANDOVER)
    bench.wait_end()
    assert isinstance(bench.observer.endings[A], HandOver)
    assert bench.observer.written[A] == [8, 10]
    eventually(lambda: bench.engine.stats().blocks.leased == 3)
    bench.engine.release(A)
    eventually(bench.all_back)


def test_a_remote_sequence_goes_on_from_the_first_token_it_is_given(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.runner.write(bench.observer.admissions[A].block_table, start=0, tokens=PROMPT)
    expected = continuation(PROMPT, seed=1, num_tokens=6)
    bench.engine.fetch_done(A, FetchLanded(SampledToken(token_id=expected[0])))
    bench.wait_end()
    assert bench.observer.tokens[A] == expected
    eventually(bench.all_back)


def test_a_lost_fetch_fails_its_sequence(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.engine.fetch_done(A, FetchLost("source is gone"))
    bench.wait_end()
    assert bench.observer.endings[A] == Fail("source_lost", "source is gone")
    eventually(bench.all_back)


def test_a_lost_fetchs_quarantined_blocks_are_back_once_they_are_quiet(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    late = bench.observer.admissions[A].block_table[1:]
    bench.engine.fetch_done(A, FetchLost("source is gone", quarantined=late))
    bench.wait_end()
    bench.submit(B)
    bench.wait_end(B)
    assert not bench.all_back()
    bench.engine.quiet(late)
    eventually(bench.all_back)


@pytest.mark.parametrize("where", ["launch", "tokens"])
def test_a_sequence_whose_steps_fail_ends_alone_and_its_neighbours_lose_no_token(
    bench: Bench, where: Literal["launch", "tokens"]
) -> None:
    """However often, and though nobody else runs: what is nobody's can be computed all the time."""
    neighbours = [SequenceId(f"n{i}") for i in range(3)]
    for i, name in enumerate(neighbours):
        bench.submit(name, prompt=[i, *PROMPT], max_tokens=40)
    for i in range(2 * MAX_FAILURES):
        bad = SequenceId(f"bad{i}")
        bench.runner.poison[bad] = where
        bench.submit(bad)
        bench.wait_end(bad)
        assert bench.observer.endings[bad] == Fail("internal", "RuntimeError: the fake model fails")
    for i, name in enumerate(neighbours):
        bench.wait_end(name)
        assert bench.observer.endings[name] == Complete("length")
        expected = continuation([i, *PROMPT], seed=1, num_tokens=40)
        assert bench.observer.tokens[name] == expected
    eventually(bench.all_back)


@pytest.mark.parametrize("where", ["launch", "tokens"])
def test_a_sequence_that_turns_bad_while_it_decodes_keeps_what_it_has_said(
    bench: Bench, where: Literal["launch", "tokens"]
) -> None:
    bench.submit(A, max_tokens=80)
    bench.submit(B, max_tokens=80)
    eventually(lambda: len(bench.observer.tokens.get(A, ())) > 5)
    bench.runner.poison[A] = where
    bench.wait_end(A)
    bench.wait_end(B)
    assert isinstance(bench.observer.endings[A], Fail | Complete)
    said = bench.observer.tokens[A]
    assert said == continuation(PROMPT, seed=1, num_tokens=len(said))
    assert bench.observer.tokens[B] == continuation(PROMPT, seed=1, num_tokens=80)
    eventually(bench.all_back)


@pytest.mark.parametrize("where", ["fail_next", "fail_tokens"])
def test_a_step_that_fails_once_costs_nobody_anything(bench: Bench, where: str) -> None:
    """Whether it cannot be launched or its tokens do not come."""
    setattr(bench.runner, where, 1)
    for name in (A, B):
        bench.submit(name)
    for name in (A, B):
        bench.wait_end(name)
        assert bench.observer.endings[name] == Complete("length")
        assert bench.observer.tokens[name] == continuation(PROMPT, seed=1, num_tokens=6)
    eventually(bench.all_back)


def test_stopping_aborts_what_still_runs(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.engine.stop()
    assert bench.observer.endings[A] == Abandon()
    with pytest.raises(CapacityError, match="stopped"):
        bench.submit(B)


def test_a_prompt_that_cannot_fit_and_a_full_queue_are_told_apart(bench: Bench) -> None:
    bench.submit(A, prompt=list(range(96)))
    bench.wait_end(A)
    assert isinstance(ending := bench.observer.endings[A], Fail)
    assert ending.code == "too_long"


def test_a_full_queue_refuses_the_next_sequence() -> None:
    bench = Bench(max_waiting=2)
    names = [SequenceId(str(i)) for i in range(7)]  # four seats, two in the queue
    for name in names:
        bench.submit(name)
    bench.engine.start()
    for name in names:
        bench.wait_end(name)
    bench.engine.stop()
    assert isinstance(ending := bench.observer.endings[names[6]], Fail)
    assert ending.code == "overloaded"


def test_a_flood_of_submissions_is_refused_at_the_door() -> None:
    bench = Bench(max_waiting=1)
    with pytest.raises(CapacityError, match="66 submissions"):
        for i in range(100):
            bench.submit(SequenceId(str(i)))


def test_an_id_in_use_and_an_empty_prompt_are_the_callers_mistakes(bench: Bench) -> None:
    bench.submit(A, mode=Mode.REMOTE)
    with pytest.raises(ValueError, match="in use"):
        bench.submit(A)
    with pytest.raises(ValueError, match="prompt is empty"):
        bench.submit(B, prompt=[])


def test_an_adapter_is_refused_until_an_engine_has_any(bench: Bench) -> None:
    sampling = Sampling(seed=1, max_tokens=1)
    asked = Submission(id=A, prompt=PROMPT, sampling=sampling, adapter=AdapterId("lora"))
    with pytest.raises(ValueError, match="adapter is 'lora'; there is none but None"):
        bench.engine.submit(asked)


def test_an_id_may_be_used_again_once_its_blocks_are_back(bench: Bench) -> None:
    bench.submit(mode=Mode.HANDOVER)
    bench.wait_end()
    with pytest.raises(ValueError, match="in use"):
        bench.submit()
    bench.engine.release(A)
    bench.observer.endings.clear()
    bench.observer.admissions.clear()
    eventually(lambda: bench.accepts(A))
    bench.wait_end()


def test_abort_while_fetching_is_answered_before_the_fetch_ends(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.engine.abort(A)
    bench.wait_end()
    assert bench.observer.endings[A] == Abandon()
    assert not bench.all_back()
    bench.engine.fetch_done(A, FetchLost("cancelled"))
    eventually(bench.all_back)


def test_commands_about_unknown_sequences_are_harmless(bench: Bench) -> None:
    for sequence in (A, B):
        bench.engine.abort(sequence)
        bench.engine.release(sequence)
        bench.engine.fetch_done(sequence, FetchLanded(SampledToken(token_id=1)))
    bench.submit()
    bench.wait_end()
    assert isinstance(bench.observer.endings[A], Complete)


def test_a_text_that_ends_ends_its_sequence(bench: Bench) -> None:
    bench.observer.stop_at[A] = 2
    bench.submit(max_tokens=50)
    bench.wait_end()
    assert isinstance(ending := bench.observer.endings[A], Complete)
    assert ending.reason == "stop"
    assert len(bench.observer.tokens[A]) == 2


@pytest.mark.parametrize("where", ["fail_next", "fail_tokens"])
def test_a_runner_that_fails_step_after_step_breaks_the_engine_aloud(
    depth: int, where: str
) -> None:
    bench = Bench(depth=depth)
    setattr(bench.runner, where, 100)
    names = [SequenceId(str(i)) for i in range(3)]
    for name in names:
        bench.submit(name)
    bench.engine.start()
    for name in names:
        bench.wait_end(name)
    eventually(lambda: bench.observer.errors)
    assert isinstance(bench.observer.errors[0], EngineBroken)
    with pytest.raises(CapacityError, match="broken"):
        bench.submit()
    assert bench.all_back()


@pytest.mark.parametrize("where", ["launch", "tokens"])
def test_an_engine_whose_device_hangs_is_broken_at_once_and_waits_for_no_other_step(
    depth: int, where: str
) -> None:
    asked = []

    class HungStep(FakeStep):
        def tokens(self) -> dict[SequenceId, Sequence[SampledToken]]:
            asked.append(self)
            raise StepHung("no answer")

    class Hung(FakeRunner):
        def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
            if where == "launch":
                raise StepHung("no answer")
            super().launch(chunks)
            return HungStep(self, chunks)

    bench = Bench(depth=depth, runner=Hung)
    bench.submit(A)
    bench.submit(B)
    bench.engine.start()
    failed = Fail("broken", "the engine is broken: no answer")
    eventually(lambda: bench.observer.errors)
    assert bench.observer.endings == {A: failed, B: failed}
    assert len(asked) == (where == "tokens")


def test_a_runner_that_launches_further_ahead_than_the_scheduler_plans_is_refused() -> None:
    with pytest.raises(ValueError, match="depth: the runner's is 3, at most 2 work"):
        Bench(depth=3)


def test_a_broken_engine_gives_every_sequence_its_ending(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    bench = Bench(depth=depth)
    bench.submit(A, mode=Mode.REMOTE)
    bench.submit(B)

    def fail(observer: RecordingObserver, tokens: object) -> set[SequenceId]:
        raise RuntimeError("the observer fails")

    monkeypatch.setattr(RecordingObserver, "step", fail)
    bench.engine.start()
    eventually(lambda: bench.observer.errors)
    failed = Fail("broken", "the engine is broken: the observer fails")
    assert bench.observer.endings == {A: failed, B: failed}


def test_the_observer_may_give_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(
        RecordingObserver, "computed", lambda self, sequence, _: bench.engine.abort(sequence)
    )
    bench.engine.start()
    bench.submit(mode=Mode.HANDOVER)
    bench.wait_end()
    bench.engine.stop()
    assert bench.observer.endings[A] == Abandon()


def test_seconds_are_told_by_the_clock_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.speeds.speedometer.MIN_PREFILL_TOKENS", 1)
    ticks = iter(range(1000))
    bench = Bench(clock=lambda: float(next(ticks)))
    bench.submit()
    bench.engine.start()
    bench.wait_end()
    bench.engine.stop()
    assert isinstance(bench.observer.endings[A], Complete)
    usage = bench.observer.usages[A]
    assert usage.queued_s > 0
    assert usage.prefill_s > 0
    assert usage.decode_s > 0
    stats = bench.engine.stats()
    assert stats.prefill_tokens_per_s == pytest.approx((0.9 * 8 + 2) / 1.9)
    assert stats.decode_step_s == 1.0


def test_a_step_ahead_is_timed_from_the_end_of_the_one_before() -> None:
    """Each launch takes 1 s, each step ahead is awaited for 10 s more."""
    now = 0.0

    class Slow(FakeRunner):
        def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
            nonlocal now
            now += 1.0
            return super().launch(chunks)

        def finish(self, step: FakeStep) -> None:
            nonlocal now
            now += 10.0
            super().finish(step)

    bench = Bench(depth=2, clock=lambda: now, runner=Slow)
    bench.submit(max_tokens=50)
    bench.engine.start()
    bench.wait_end()
    bench.engine.stop()
    assert 10 <= bench.engine.stats().decode_step_s <= 11


def test_steps_in_flight_are_awaited_before_the_engine_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody writes into the blocks once their sequences have ended."""

    def stop(observer: RecordingObserver, tokens: object) -> set[SequenceId]:
        bench.engine.stop()
        return set()

    monkeypatch.setattr(RecordingObserver, "step", stop)
    bench.submit(max_tokens=50)
    bench.wait_end()
    assert bench.observer.endings[A] == Abandon()
    assert bench.runner.num_in_flight == 0
    assert bench.all_back()


def test_the_next_step_is_launched_before_the_last_ones_tokens_are_read() -> None:
    bench = Bench(depth=2)
    bench.submit(max_tokens=20)
    bench.engine.start()
    bench.wait_end()
    bench.engine.stop()
    pending = [chunk.pending for batch in bench.runner.batches for chunk in batch]
    assert pending == [0, 0, *[1] * 19]
    assert bench.observer.tokens[A] == continuation(PROMPT, seed=1, num_tokens=20)


def test_events_reach_the_observer_in_order(bench: Bench) -> None:
    bench.submit()
    bench.wait_end()
    eventually(lambda: bool(bench.observer.block_changes))
    assert bench.observer.block_changes[0].kind == "stored"
    assert bench.engine.stats().blocks.total == 32


def test_a_handover_is_told_of_the_blocks_that_its_windows_still_see() -> None:
    """10 tokens in blocks of 4: a window of 3 reaches back from token 8 into block 1."""
    bench = Bench(windows=(None, 3))
    bench.engine.start()
    bench.submit(mode=Mode.HANDOVER)
    bench.wait_end()
    admission = bench.observer.admissions[A]
    assert [block == NO_BLOCK for block in admission.block_table] == [
        False, True, False, False, False, False,
    ]  # fmt: skip
    assert admission.generations == (1, 0, 1, 1, 1, 1)
    bench.engine.release(A)
    eventually(bench.all_back)
    bench.engine.stop()


def test_an_engine_that_hangs_in_a_step_shows_for_how_long_and_an_idle_one_nothing() -> None:
    now, hangs, entered = [0.0], threading.Event(), threading.Event()

    class Hanging(FakeRunner):
        def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
            entered.set()
            hangs.wait(30)
            return super().launch(chunks)

    bench = Bench(runner=Hanging, clock=lambda: now[0])
    bench.engine.start()
    assert bench.engine.turn_s() == 0.0
    bench.submit()
    assert entered.wait(30)
    now[0] = 400.0
    assert bench.engine.turn_s() == 400.0
    hangs.set()
    bench.wait_end()
    eventually(lambda: bench.engine.turn_s() == 0.0)
    now[0] = 900.0
    assert bench.engine.turn_s() == 0.0
    bench.engine.stop()
