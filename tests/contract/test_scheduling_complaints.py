"""What users and readers of engines that schedule ahead reported, each made to happen to us.

As in docs/field-failures.md. Every one at the scheduler, moved by hand, and on an engine's own thread;
with the next step launched before the last one's tokens are read (depth 2), and without.
"""

from collections.abc import Callable, Sequence

import pytest
from support.eventually import eventually
from support.fake_runner import FakeRunner, FakeStep, continuation
from support.observed import RecordingObserver
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.batch import Chunk, SequenceId
from engine.commands import Submission
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.observer import Aborted, Finished
from engine.sequence import Cancel, Complete, State
from protocol.messages import Sampling

PROMPT = list(range(200, 220))
SAID = continuation(PROMPT, seed=1, num_tokens=20)
A, B = SequenceId("a"), SequenceId("b")

pytestmark = pytest.mark.parametrize("depth", [1, 2])


class Interrupted(FakeRunner):
    """Something happens at the launch of each step: commands given there are obeyed while it is in
    flight (depth 2) or after it (depth 1)."""

    at_launch: Callable[[Sequence[Chunk]], None] = staticmethod(lambda chunks: None)

    def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
        self.at_launch(chunks)
        return super().launch(chunks)


class Bench:
    def __init__(self, *, depth: int, num_blocks: int = 16, eos: Sequence[int] = ()) -> None:
        self.runner = Interrupted(num_blocks=num_blocks, depth=depth)
        self.observer = RecordingObserver()
        self.engine = Engine(
            runner=self.runner,
            limits=EngineLimits(
                max_running=4, max_waiting=8, token_budget=8, max_context_tokens=60
            ),
            eos_token_ids=eos,
            compat="test",
            generations=self.runner.generations,
            observer=self.observer,
            check=True,
        )

    def submit(self, name: SequenceId, *, prompt: Sequence[int] = PROMPT, max_tokens: int) -> None:
        sampling = Sampling(seed=1, max_tokens=max_tokens)
        self.engine.submit(Submission(id=name, prompt=prompt, sampling=sampling))

    def run(self, *names: SequenceId) -> None:
        """Until these have ended; who comes next finds its tokens right and the pool whole."""
        self.engine.start()
        eventually(lambda: self.observer.endings.keys() >= set(names))
        self.runner.at_launch = lambda chunks: None
        last = SequenceId("last")
        self.submit(last, max_tokens=20)
        eventually(lambda: last in self.observer.endings)
        assert self.observer.tokens[last] == SAID[: len(self.observer.tokens[last])]
        eventually(self.all_back)
        self.engine.stop()
        assert not self.observer.errors

    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total


def whole(stepper: Stepper) -> bool:
    """Nothing is lost, nothing is owned twice."""
    stepper.run()
    stepper.scheduler.check()
    num_blocks = stepper.blocks.num_blocks
    return stepper.all_back and len(set(stepper.cache.take((), num_new=num_blocks))) == num_blocks


# -- mini-sglang: abort while a prefill is in flight --------------------------------------


@pytest.mark.parametrize("num_complete", [0, 1])
def test_mini_sglang_an_abort_while_a_prefill_is_in_flight_leaves_no_block_with_two_owners(
    depth: int, num_complete: int
) -> None:
    """There the abort freed the pages and the returning forward put them into the cache as well;
    the next request then overwrote cached KV.

    1. chunks are launched  2. the abort arrives  3. they complete  4. the next request comes.
    """
    stepper = Stepper(depth=depth)
    run = stepper.submit(PROMPT, max_tokens=4)
    while stepper.may_launch:
        stepper.launch()
    for _ in range(num_complete):
        stepper.complete()
    stepper.abort(run)
    assert run.verdicts == [Cancel()]
    while stepper.flights:
        assert stepper.blocks.num_owned == 5
        stepper.complete()
    assert run.freed and stepper.blocks.num_owned == 0
    following = stepper.submit(PROMPT, max_tokens=4)
    stepper.run()
    assert following.outputs == SAID[:4]
    assert whole(stepper)


def test_mini_sglang_an_engine_survives_an_abort_while_a_prefill_is_in_flight(depth: int) -> None:
    bench = Bench(depth=depth)

    def abort_at_the_second_chunk(chunks: Sequence[Chunk]) -> None:
        if any(chunk.sequence == A and chunk.start == 8 for chunk in chunks):
            bench.engine.abort(A)

    bench.runner.at_launch = abort_at_the_second_chunk
    bench.submit(A, max_tokens=4)
    bench.run(A)
    assert bench.observer.endings[A] == Aborted()


# -- mini-sglang: abort while the token in flight is the last -----------------------------


def last_in_flight(depth: int, *, eos: bool) -> tuple[Stepper, Run]:
    """The step that samples the sequence's last token is launched."""
    stepper = Stepper(depth=depth, eos_token_ids=(SAID[2],) if eos else ())
    sampling = Sampling(seed=1, max_tokens=20 if eos else 3)
    run = stepper.submit(PROMPT, sampling=sampling)
    while not any(chunk.position == 22 for flight in stepper.flights for chunk in flight.chunks):
        if not stepper.may_launch:
            stepper.complete()
        stepper.launch()
    return stepper, run


@pytest.mark.parametrize("eos", [True, False])
def test_mini_sglang_an_abort_while_the_last_token_is_in_flight_frees_once(
    depth: int, eos: bool
) -> None:
    """There the abort freed the request and so did its last token: the scheduler died."""
    stepper, run = last_in_flight(depth, eos=eos)
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Cancel()]
    assert run.outputs == SAID[: len(run.outputs)] and len(run.outputs) < 3
    assert whole(stepper)


@pytest.mark.parametrize("eos", [True, False])
def test_mini_sglang_an_abort_after_the_last_token_with_a_step_ahead_in_flight_frees_once(
    depth: int, eos: bool
) -> None:
    """The other order: the end was read, the step launched ahead of it is not over."""
    stepper, run = last_in_flight(depth, eos=eos)
    while not run.verdicts:
        stepper.step()
    ahead = depth == 2 and eos  # its length ends a sequence foreseeably: then nothing goes ahead
    assert (run.sequence.state is State.DRAINING) == ahead
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Complete("stop" if eos else "length")]
    assert run.outputs == SAID[:3]
    assert whole(stepper)


@pytest.mark.parametrize("eos", [True, False])
def test_mini_sglang_an_engine_survives_an_abort_while_the_last_token_is_in_flight(
    depth: int, eos: bool
) -> None:
    bench = Bench(depth=depth, eos=(SAID[2],) if eos else ())

    def abort_at_the_last_token(chunks: Sequence[Chunk]) -> None:
        if any(chunk.sequence == A and chunk.position == 22 for chunk in chunks):
            bench.engine.abort(A)

    bench.runner.at_launch = abort_at_the_last_token
    bench.submit(A, max_tokens=20 if eos else 3)
    bench.run(A)
    ending = bench.observer.endings[A]  # at depth 1 the token is read before the abort is
    assert ending == Aborted() if depth == 2 else isinstance(ending, Finished)


# -- nano-vllm: preempted, then prefilled again on cached blocks --------------------------


def preempted_at(depth: int, **prompts: int) -> tuple[Stepper, list[Run]]:
    """Two long outputs in a pool that has room for one and a half, until the newer has left."""
    stepper = Stepper(depth=depth, num_blocks=9, max_context_tokens=36, token_budget=30)
    runs = [
        stepper.submit([100 * (i + 1) + n for n in range(size)], max_tokens=16)
        for i, size in enumerate(prompts.values())
    ]
    while not stepper.scheduler.num_preempted:
        stepper.step()
    assert runs[-1].sequence.state is State.WAITING
    return stepper, runs


def test_nano_vllm_211_a_preempted_sequence_is_prefilled_again_from_its_cached_blocks_on(
    depth: int,
) -> None:
    """And #233. There the prefix hit came after the tokens to compute had been counted: an index
    error. Here both are one decision, made when it is admitted again."""
    stepper, (old, new) = preempted_at(depth, old=9, new=11)
    cached = 4 * BLOCK_TOKENS
    stepper.run()
    again = next(
        chunk
        for batch in reversed(stepper.runner.batches)
        for chunk in batch
        if chunk.sequence == new.sequence.id and len(chunk.token_ids) > 1
    )
    assert 0 < again.start <= cached and again.start % BLOCK_TOKENS == 0
    assert (old.outputs, new.outputs) == (old.expected(16), new.expected(16))
    assert new.admissions == 1
    assert whole(stepper)


def test_nano_vllm_144_a_sequence_whose_every_token_is_cached_still_computes_one(
    depth: int,
) -> None:
    """There a fully cached prompt was a prefill of no tokens, taken for a decode."""
    stepper = Stepper(depth=depth)
    for _ in range(2):
        run = stepper.submit(PROMPT, max_tokens=4)
        stepper.run()
        assert run.outputs == SAID[:4]
    assert run.sequence.num_cached == 16
    assert all(chunk.token_ids for batch in stepper.runner.batches for chunk in batch)
    assert whole(stepper)


def test_nano_vllm_211_an_engine_preempts_and_goes_on_with_identical_tokens(depth: int) -> None:
    bench = Bench(depth=depth, num_blocks=15)
    names = [SequenceId(str(i)) for i in range(3)]
    prompts = [[100 * (i + 1) + n for n in range(9 + i)] for i in range(3)]
    for name, prompt in zip(names, prompts, strict=True):
        bench.submit(name, prompt=prompt, max_tokens=16)
    bench.run(*names)
    assert bench.engine.stats().num_preempted > 0
    for name, prompt in zip(names, prompts, strict=True):
        assert bench.observer.tokens[name] == continuation(prompt, seed=1, num_tokens=16)
