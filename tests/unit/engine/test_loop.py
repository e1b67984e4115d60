from collections.abc import Iterator

import pytest
from support.eventually import eventually
from support.fake_runner import FakeRunner, continuation
from support.observed import RecordingObserver

from engine.batch import SequenceId
from engine.commands import Submission
from engine.ending import Aborted, Failed, Finished, HandedOver
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.sequence import Landed, Lost, Mode
from protocol.errors import CapacityError
from protocol.messages import Sampling

A, B = SequenceId("a"), SequenceId("b")
PROMPT = list(range(1, 11))


class Bench:
    """An engine on a fake runner, with its observer."""

    def __init__(self, *, num_blocks: int = 32, max_waiting: int = 8) -> None:
        self.runner = FakeRunner(num_blocks=num_blocks)
        self.observer = RecordingObserver()
        self.engine = Engine(
            runner=self.runner,
            limits=EngineLimits(
                max_running=4, max_waiting=max_waiting, token_budget=8, max_context_tokens=96
            ),
            eos_token_ids=(),
            compat="test",
            generations=[0] * num_blocks,
            observer=self.observer,
            check=True,
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

    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.engine.start()
    yield bench
    bench.engine.stop()
    assert not bench.observer.errors


def test_a_sequence_runs_to_its_last_token(bench: Bench) -> None:
    bench.submit()
    bench.wait_end()
    assert bench.observer.tokens[A] == continuation(PROMPT, seed=1, num_tokens=6)
    ending = bench.observer.endings[A]
    assert isinstance(ending, Finished)
    assert ending.reason == "length"
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
    assert isinstance(bench.observer.endings[A], HandedOver)
    assert bench.observer.written[A] == [8, 10]
    eventually(lambda: bench.engine.stats().blocks.leased == 3)
    bench.engine.release(A)
    eventually(bench.all_back)


def test_a_remote_sequence_goes_on_from_the_first_token_it_is_given(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.runner.write(bench.observer.admissions[A].block_table, start=0, tokens=PROMPT)
    expected = continuation(PROMPT, seed=1, num_tokens=6)
    bench.engine.fetch_done(A, Landed(first_token=expected[0]))
    bench.wait_end()
    assert bench.observer.tokens[A] == expected
    eventually(bench.all_back)


def test_a_lost_fetch_fails_its_sequence(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.engine.fetch_done(A, Lost("source is gone"))
    bench.wait_end()
    assert bench.observer.endings[A] == Failed(code="source_lost", message="source is gone")
    eventually(bench.all_back)


def test_a_failed_step_fails_its_sequences_and_the_engine_goes_on(bench: Bench) -> None:
    bench.runner.fail_next = 1
    bench.submit(A)
    bench.wait_end(A)
    bench.submit(B)
    bench.wait_end(B)
    ending = bench.observer.endings[A]
    assert isinstance(ending, Failed)
    assert ending.code == "internal"
    assert isinstance(bench.observer.endings[B], Finished)


def test_stopping_aborts_what_still_runs(bench: Bench) -> None:
    bench.submit(mode=Mode.REMOTE)
    eventually(lambda: A in bench.observer.admissions)
    bench.engine.stop()
    assert bench.observer.endings[A] == Aborted()
    with pytest.raises(CapacityError, match="stopped"):
        bench.submit(B)
