"""Sequences of one prompt: one brings its KV, and the others go on from that."""

import pytest
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.sequence import Abandon, Complete, Fail, Mode, SequenceState
from protocol.messages import Sampling

PROMPT = list(range(200, 230))
"""Seven blocks and two tokens."""


def forked(
    stepper: Stepper, *, num: int = 3, mode: Mode = Mode.LOCAL, num_tokens: int = 30
) -> tuple[Run, list[Run]]:
    """A sequence and others that fork it, each with its own seed."""
    prompt = PROMPT[:num_tokens]
    first = stepper.submit(prompt, mode=mode, max_tokens=6)
    others = [
        stepper.submit(prompt, seed=2 + i, max_tokens=6, fork_of=first) for i in range(num)
    ]  # fmt: skip
    return first, others


def num_computed(stepper: Stepper) -> int:
    chunks = [chunk for batch in stepper.runner.batches for chunk in batch]
    return sum(len(c.token_ids) for c in chunks if c.start < c.num_prompt)


def check(*runs: Run) -> None:
    """They have said what they would have alone."""
    for run in runs:
        assert run.verdicts == [Complete("length")]
        assert run.outputs == run.expected(6)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 27, 28, 29, 30])
def test_of_one_prompt_each_fork_computes_one_token(depth: int, num_tokens: int) -> None:
    stepper = Stepper(num_blocks=100, depth=depth, token_budget=16)
    first, others = forked(stepper, num_tokens=num_tokens)
    stepper.run()
    check(first, *others)
    assert num_computed(stepper) == num_tokens + 3
    assert stepper.scheduler.num_forked == 3
    assert stepper.all_back


@pytest.mark.parametrize("depth", [1, 2])
def test_a_fetched_prompt_is_fetched_once_and_nothing_of_it_computed(depth: int) -> None:
    stepper = Stepper(num_blocks=100, depth=depth)
    first, others = forked(stepper, mode=Mode.REMOTE)
    for _ in range(3):
        stepper.step()
    assert [run.sequence.state for run in others] == [SequenceState.DEFERRED] * 3
    stepper.land(first)
    stepper.run()
    check(first, *others)
    assert num_computed(stepper) == 3


def test_whole_blocks_are_shared_and_the_last_one_is_each_ones_own() -> None:
    stepper = Stepper(num_blocks=100, token_budget=64)
    first, others = forked(stepper)
    stepper.step()
    stepper.step()
    tables = [run.sequence.block_table.blocks for run in (first, *others)]
    assert len({tuple(table[:7]) for table in tables}) == 1
    assert len({table[7] for table in tables}) == 4


def test_a_fork_holds_what_it_copies_until_the_step_is_over() -> None:
    """Its origin may end in the meantime, and others may want the block."""
    stepper = Stepper(num_blocks=100, token_budget=64, depth=2)
    first, others = forked(stepper, num=1)
    stepper.launch()
    stepper.complete()
    partial = first.sequence.block_table.blocks[7]
    stepper.launch()
    assert stepper.in_flight[-1].chunks[1].copies
    stepper.abort(first)
    assert stepper.blocks.refs(partial)
    stepper.scheduler.check()
    stepper.run()
    check(*others)
    assert stepper.all_back


@pytest.mark.parametrize("how", ["fail", "fail_launch"])
def test_a_step_that_failed_copies_again(how: str) -> None:
    stepper = Stepper(num_blocks=100, token_budget=64)
    first, others = forked(stepper)
    stepper.step()
    if how == "fail":
        stepper.launch()
    getattr(stepper, how)()
    while stepper.suspects:
        stepper.repeat(fails=False)
    stepper.run()
    check(first, *others)
    assert num_computed(stepper) <= 30 + 2 * 3


def test_two_steps_ahead_copy_once() -> None:
    """The second step would take away what the first has written."""
    stepper = Stepper(num_blocks=100, token_budget=64, depth=2)
    forked(stepper, num=1)
    stepper.run()
    copying = [c for batch in stepper.runner.batches for c in batch if c.copies]
    assert len(copying) == 1 and copying[0].start == 29


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_steps", range(1, 9))
def test_when_the_origin_is_aborted_its_forks_go_on_or_are_placed_again(
    depth: int, num_steps: int
) -> None:
    stepper = Stepper(num_blocks=100, depth=depth)
    first, others = forked(stepper)
    for _ in range(num_steps):
        stepper.step()
    stepper.abort(first)
    stepper.run()
    assert first.verdicts == [Abandon()] and stepper.all_back
    if all(isinstance(run.verdicts[0], Fail) for run in others):
        assert not any(run.admissions for run in others)
        assert {run.verdicts[0].code for run in others} == {"source_lost"}  # type: ignore[union-attr]
    else:
        check(*others)


def test_when_the_origins_fetch_is_lost_its_forks_are_placed_again() -> None:
    stepper = Stepper(num_blocks=100)
    first, others = forked(stepper, mode=Mode.REMOTE)
    stepper.step()
    stepper.lose(first)
    for run in (first, *others):
        (verdict,) = run.verdicts
        assert isinstance(verdict, Fail) and verdict.code == "source_lost"
    assert stepper.all_back


def test_of_an_origin_that_has_ended_the_cached_blocks_are_used() -> None:
    stepper = Stepper(num_blocks=100)
    first = stepper.submit(PROMPT, max_tokens=6)
    stepper.run()
    late = stepper.submit(PROMPT, seed=2, max_tokens=6, fork_of=first)
    stepper.run()
    check(late)
    assert num_computed(stepper) == 30 + 2


def test_an_origin_that_is_preempted_is_waited_for() -> None:
    stepper = Stepper(num_blocks=14, token_budget=5, max_running=4)
    decoding = [stepper.submit([i] * 3, max_tokens=30) for i in (1, 2)]
    stepper.step()
    first, others = forked(stepper, num=1)
    stepper.run(max_steps=400)
    assert stepper.scheduler.num_preempted
    check(first, *others)
    assert [len(run.outputs) for run in decoding] == [30, 30]


def test_a_fork_that_is_preempted_is_computed_like_any_other() -> None:
    stepper = Stepper(num_blocks=12, token_budget=16, max_running=4)
    prompt = PROMPT[:10]
    first = stepper.submit(prompt, max_tokens=25)
    others = [stepper.submit(prompt, seed=2 + i, max_tokens=25, fork_of=first) for i in range(2)]
    stepper.run()
    assert stepper.scheduler.num_preempted and stepper.scheduler.num_forked >= 2
    for run in (first, *others):
        assert run.outputs == run.expected(25)
    assert stepper.all_back


def test_another_prompt_or_tenant_is_no_origin() -> None:
    stepper = Stepper(num_blocks=100, token_budget=64)
    first = stepper.submit(PROMPT, max_tokens=6)
    other = stepper.submit(PROMPT[1:], max_tokens=6, fork_of=first)
    foreign = stepper.submit(PROMPT, max_tokens=6, salt="another", fork_of=first)
    stepper.run()
    check(first, other, foreign)
    assert stepper.scheduler.num_forked == 0


def test_an_origin_that_came_later_or_is_less_urgent_is_not_waited_for() -> None:
    """Others may keep it from being computed."""
    stepper = Stepper(num_blocks=100, token_budget=9)
    slow = stepper.submit(PROMPT, max_tokens=6, priority=3)
    urgent = stepper.submit(PROMPT, max_tokens=6, fork_of=slow)
    stepper.launch()
    assert urgent.sequence.state is SequenceState.PREFILLING
    stepper.complete()
    stepper.run()
    check(slow, urgent)


def test_a_fork_can_be_aborted_at_any_time() -> None:
    for num_steps in range(9):
        stepper = Stepper(num_blocks=100, depth=2)
        first, others = forked(stepper)
        for _ in range(num_steps):
            stepper.step()
        stepper.abort(others[0])
        stepper.run()
        check(first, *others[1:])
        assert stepper.all_back


@pytest.mark.parametrize("windows", [(None, 10), (6,), (None, 10, 5)])
@pytest.mark.parametrize("depth", [1, 2])
def test_layers_with_windows_fork_as_well(windows: tuple[int | None, ...], depth: int) -> None:
    stepper = Stepper(num_blocks=100, windows=windows, depth=depth, token_budget=16)
    first, others = forked(stepper)
    stepper.run()
    check(first, *others)
    assert num_computed(stepper) == 30 + 3
    assert stepper.all_back


def test_an_origin_whose_window_has_left_the_prompt_is_not_copied() -> None:
    """Two run; the fork is admitted when one has ended, and the origin is far on by then."""
    stepper = Stepper(num_blocks=100, windows=(None, 6), max_running=2, token_budget=64)
    first = stepper.submit(PROMPT, max_tokens=60)
    stepper.submit([3], max_tokens=20)
    late = stepper.submit(PROMPT, seed=5, max_tokens=6, fork_of=first)
    stepper.run()
    check(late)
    assert stepper.scheduler.num_forked == 0


def test_a_penalised_fork_sees_its_own_outputs_only() -> None:
    stepper = Stepper(num_blocks=100, depth=2, token_budget=64)
    first = stepper.submit(PROMPT, max_tokens=6)
    rule = Sampling(seed=9, max_tokens=6, presence_penalty=0.5, ignore_eos=True)
    fork = stepper.submit(PROMPT, sampling=rule, fork_of=first)
    stepper.run()
    check(first, fork)
    chunk = next(c for batch in stepper.runner.batches for c in batch if c.copies)
    assert not chunk.outputs and len(chunk.token_ids) == 1


def test_who_came_later_leaves_room_for_forks_that_wait() -> None:
    stepper = Stepper(num_blocks=12, max_running=5, token_budget=64)
    first, others = forked(stepper, num=2)
    late = stepper.submit([1] * (3 * BLOCK_TOKENS), max_tokens=1)
    stepper.step()
    assert not late.admissions
    stepper.step()
    assert all(run.admissions for run in others)
    stepper.run()
    check(first, *others)
