"""What a request may count on, in steps, whether or not steps are launched ahead.

That what can never fit is refused is in test_scheduler.py; that nothing is lost, in
tests/property/test_ownership.py.
"""

from collections.abc import Sequence
from random import Random

import pytest
from support.stepper import Run, Stepper

from engine.batch import Chunk
from engine.sequence import Complete, SequenceState
from protocol.messages import Sampling

pytestmark = pytest.mark.parametrize("depth", [1, 2])

TOKEN_BUDGET = 2048
LONG_PROMPT = 32_768


def holds(batch: Sequence[Chunk], run: Run) -> bool:
    return any(chunk.sequence == run.sequence.id for chunk in batch)


def beside_long_prompts(depth: int, sampling: Sequence[Sampling]) -> tuple[Stepper, list[Run]]:
    """Running decodes, and a queue of three long prompts."""
    num_blocks = 3 * LONG_PROMPT // 4 + 2000
    stepper = Stepper(
        depth=depth,
        num_blocks=num_blocks,
        max_running=12,
        token_budget=TOKEN_BUDGET,
        max_context_tokens=40_000,
    )
    runs = [stepper.submit([300 + i] * 5, sampling=each) for i, each in enumerate(sampling)]
    while len(stepper.in_state(SequenceState.DECODING)) < len(runs):
        stepper.step()
    for i in range(3):
        stepper.submit(range(i, LONG_PROMPT + i), max_tokens=1)
    return stepper, runs


def test_no_decode_waits_longer_than_one_chunk_beside_a_queue_of_long_prompts(depth: int) -> None:
    """Every step holds every decode's next token and, of the prompts, what the budget leaves."""
    plain = [Sampling(seed=i, max_tokens=200) for i in range(8)]
    stepper, runs = beside_long_prompts(depth, plain)
    num_steps = 0
    while stepper.scheduler.load().waiting_tokens:
        before = [len(run.outputs) for run in runs]
        batch = stepper.step()
        num_steps += 1
        assert all(holds(batch, run) for run in runs)
        assert sum(len(chunk.token_ids) for chunk in batch) <= TOKEN_BUDGET
        assert [len(run.outputs) for run in runs] == [count + 1 for count in before]
    assert num_steps <= 3 * LONG_PROMPT / (TOKEN_BUDGET - 8) + depth


def test_a_decode_with_a_penalty_is_in_every_step(depth: int) -> None:
    penalised = [Sampling(seed=1, max_tokens=200, presence_penalty=0.5)]
    stepper, (run,) = beside_long_prompts(depth, penalised)
    assert all(holds(stepper.step(), run) for _ in range(12))


@pytest.mark.parametrize("seed", range(5))
def test_every_request_ends_within_a_bound_under_a_stream_of_newcomers(
    depth: int, seed: int
) -> None:
    """In a pool too small for those that run: whoever was there first is done no later than if
    all before it had run one after another, each of them computed twice."""
    random = Random(seed)
    stepper = Stepper(
        depth=depth, num_blocks=14, max_running=4, max_waiting=4, max_context_tokens=50
    )
    alone = 40 // (8 - 4) + 14  # steps of the longest: chunks beside four decodes, then tokens
    bound = 2 * alone * (4 + 4 + 1)
    waiting: dict[int, Run] = {}
    for step in range(800):
        if stepper.scheduler.load().waiting < 4 and step < 600:
            prompt = [random.randrange(900) for _ in range(random.randint(1, 30))]
            waiting[step] = stepper.submit(prompt, max_tokens=random.randint(1, 14))
        stepper.step()
        waiting = {since: run for since, run in waiting.items() if not run.verdicts}
        assert all(step - since <= bound for since in waiting)
    assert not waiting
    assert stepper.scheduler.num_preempted > 5
    assert stepper.all_back
    for run in stepper.runs.values():
        assert run.verdicts == [Complete("length")]
        assert run.outputs == run.expected(run.sequence.sampling.max_tokens)
