"""A sequence that is computed again goes on from its cached blocks, and computes a token at least.

What users and readers of engines that schedule ahead reported (docs/complaints.md), each made
to happen to us. Every one at the scheduler, moved by hand, and on an engine's own thread; with the
next step launched before the last one's tokens are read (depth 2), and without.
"""

import pytest
from support.fake_runner import continuation
from support.interrupted_engine import PROMPT, SAID, InterruptedEngine, whole
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.batch import SequenceId
from engine.sequence import SequenceState

pytestmark = pytest.mark.parametrize("depth", [1, 2])


def preempted_at(depth: int, **prompts: int) -> tuple[Stepper, list[Run]]:
    """Two long outputs in a pool that has room for one and a half, until the newer has left."""
    stepper = Stepper(depth=depth, num_blocks=9, max_context_tokens=36, token_budget=30)
    runs = [
        stepper.submit([100 * (i + 1) + n for n in range(size)], max_tokens=16)
        for i, size in enumerate(prompts.values())
    ]
    while not stepper.scheduler.num_preempted:
        stepper.step()
    assert runs[-1].sequence.state is SequenceState.WAITING
    return stepper, runs


def test_a_preempted_sequence_is_prefilled_again_from_its_cached_blocks_on(
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


def test_a_sequence_whose_every_token_is_cached_still_computes_one(
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


def test_an_engine_preempts_and_goes_on_with_identical_tokens(depth: int) -> None:
    bench = InterruptedEngine(depth=depth, num_blocks=15)
    names = [SequenceId(str(i)) for i in range(3)]
    prompts = [[100 * (i + 1) + n for n in range(9 + i)] for i in range(3)]
    for name, prompt in zip(names, prompts, strict=True):
        bench.submit(name, prompt=prompt, max_tokens=16)
    bench.run(*names)
    assert bench.engine.stats().num_preempted > 0
    for name, prompt in zip(names, prompts, strict=True):
        assert bench.observer.tokens[name] == continuation(prompt, seed=1, num_tokens=16)
