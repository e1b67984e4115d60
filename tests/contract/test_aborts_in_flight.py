"""An abort that comes while a step is in flight frees every block once.

What users and readers of engines that schedule ahead reported (docs/complaints.md), each made
to happen to us. Every one at the scheduler, moved by hand, and on an engine's own thread; with the
next step launched before the last one's tokens are read (depth 2), and without.
"""

from collections.abc import Sequence

import pytest
from support.interrupted_engine import PROMPT, SAID, InterruptedEngine, whole
from support.stepper import Run, Stepper

from engine.batch import Chunk, SequenceId
from engine.sequence import Abandon, Complete, SequenceState
from protocol.messages import Sampling

A = SequenceId("a")

pytestmark = pytest.mark.parametrize("depth", [1, 2])


# -- abort while a prefill is in flight ------------------------------------------------------


@pytest.mark.parametrize("num_complete", [0, 1])
def test_an_abort_while_a_prefill_is_in_flight_leaves_no_block_with_two_owners(
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
    assert run.verdicts == [Abandon()]
    while stepper.in_flight:
        assert stepper.blocks.num_owned == 5
        stepper.complete()
    assert run.freed and stepper.blocks.num_owned == 0
    following = stepper.submit(PROMPT, max_tokens=4)
    stepper.run()
    assert following.outputs == SAID[:4]
    assert whole(stepper)


def test_an_engine_survives_an_abort_while_a_prefill_is_in_flight(depth: int) -> None:
    bench = InterruptedEngine(depth=depth)

    def abort_at_the_second_chunk(chunks: Sequence[Chunk]) -> None:
        if any(chunk.sequence == A and chunk.start == 8 for chunk in chunks):
            bench.engine.abort(A)

    bench.runner.at_launch = abort_at_the_second_chunk
    bench.submit(A, max_tokens=4)
    bench.run(A)
    assert bench.observer.endings[A] == Abandon()


# -- abort while the token in flight is the last ---------------------------------------------


def last_in_flight(depth: int, *, eos: bool) -> tuple[Stepper, Run]:
    """The step that samples the sequence's last token is launched."""
    stepper = Stepper(depth=depth, eos_token_ids=(SAID[2],) if eos else ())
    sampling = Sampling(seed=1, max_tokens=20 if eos else 3)
    run = stepper.submit(PROMPT, sampling=sampling)
    while not any(chunk.position == 22 for flight in stepper.in_flight for chunk in flight.chunks):
        if not stepper.may_launch:
            stepper.complete()
        stepper.launch()
    return stepper, run


@pytest.mark.parametrize("eos", [True, False])
def test_an_abort_while_the_last_token_is_in_flight_frees_once(depth: int, eos: bool) -> None:
    """There the abort freed the request and so did its last token: the scheduler died."""
    stepper, run = last_in_flight(depth, eos=eos)
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Abandon()]
    assert run.outputs == SAID[: len(run.outputs)] and len(run.outputs) < 3
    assert whole(stepper)


@pytest.mark.parametrize("eos", [True, False])
def test_an_abort_after_the_last_token_with_a_step_ahead_in_flight_frees_once(
    depth: int, eos: bool
) -> None:
    """The other order: the end was read, the step launched ahead of it is not over."""
    stepper, run = last_in_flight(depth, eos=eos)
    while not run.verdicts:
        stepper.step()
    ahead = depth == 2 and eos  # its length ends a sequence foreseeably: then nothing goes ahead
    assert (run.sequence.state is SequenceState.DRAINING) == ahead
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Complete("stop" if eos else "length")]
    assert run.outputs == SAID[:3]
    assert whole(stepper)


@pytest.mark.parametrize("eos", [True, False])
def test_an_engine_survives_an_abort_while_the_last_token_is_in_flight(
    depth: int, eos: bool
) -> None:
    bench = InterruptedEngine(depth=depth, eos=(SAID[2],) if eos else ())

    def abort_at_the_last_token(chunks: Sequence[Chunk]) -> None:
        if any(chunk.sequence == A and chunk.position == 22 for chunk in chunks):
            bench.engine.abort(A)

    bench.runner.at_launch = abort_at_the_last_token
    bench.submit(A, max_tokens=20 if eos else 3)
    bench.run(A)
    ending = bench.observer.endings[A]  # at depth 1 the token is read before the abort is
    assert ending == Abandon() if depth == 2 else isinstance(ending, Complete)
