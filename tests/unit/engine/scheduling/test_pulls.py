"""A sequence whose beginning a peer has cached: fetched first, and then as if it had been here."""

import pytest
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.sequence import Abandon, Mode, SequenceState
from protocol.readings import ScorePrompt

PROMPT = list(range(50, 50 + 6 * BLOCK_TOKENS + 1))
ALL = 6 * BLOCK_TOKENS


def pulling(stepper: Stepper, *, mode: Mode = Mode.LOCAL, pull_tokens: int = ALL) -> Run:
    run = stepper.submit(PROMPT, mode=mode, pull_tokens=pull_tokens)
    stepper.step()
    assert run.sequence.state is SequenceState.FETCHING and not run.admissions
    return run


@pytest.mark.parametrize("mode", [Mode.LOCAL, Mode.HANDOVER])
def test_what_came_is_not_computed(mode: Mode) -> None:
    stepper = Stepper()
    run = pulling(stepper, mode=mode)
    stepper.end_pull(run, num_tokens=stepper.pull(run))
    assert run.sequence.state is SequenceState.PREFILLING and run.admissions == 1
    (chunk,) = stepper.step()
    assert (chunk.start, len(chunk.token_ids)) == (ALL, 1)
    stepper.run()
    assert run.outputs == run.expected(len(run.outputs)) and run.outputs
    assert run.sequence.usage(now=9.0).cached_tokens == 0


def test_what_came_is_found_in_the_prefix_cache_by_the_next() -> None:
    stepper = Stepper()
    run = pulling(stepper)
    stepper.end_pull(run, num_tokens=stepper.pull(run))
    other = stepper.submit(PROMPT)
    stepper.step()
    assert other.sequence.num_cached == ALL


@pytest.mark.parametrize("num_blocks", [0, 1, 5])
def test_what_did_not_come_is_computed(num_blocks: int) -> None:
    stepper = Stepper(token_budget=64)
    run = pulling(stepper)
    stepper.pull(run, fraction=num_blocks / 6)
    stepper.end_pull(run, num_tokens=num_blocks * BLOCK_TOKENS)
    (chunk,) = stepper.step()
    assert chunk.start == num_blocks * BLOCK_TOKENS
    stepper.run()
    assert run.outputs == run.expected(4)


def test_others_are_computed_meanwhile() -> None:
    stepper = Stepper()
    run = pulling(stepper)
    other = stepper.submit([1, 2, 3])
    stepper.run()
    assert other.outputs == other.expected(4) and run.sequence.state is SequenceState.FETCHING


def test_a_full_step_does_not_keep_a_pull_from_beginning() -> None:
    stepper = Stepper(token_budget=8)
    busy = stepper.submit(list(range(30)))
    stepper.step()
    run = stepper.submit(PROMPT, pull_tokens=ALL)
    stepper.step()
    assert busy.sequence.state is SequenceState.PREFILLING
    assert run.sequence.state is SequenceState.FETCHING


def test_a_full_step_admits_who_need_not_pull_without_a_chunk() -> None:
    stepper = Stepper(token_budget=8)
    first = stepper.submit(PROMPT, max_tokens=1)
    stepper.run()
    assert first.outputs
    stepper.submit(list(range(30)))
    stepper.step()
    run = stepper.submit(PROMPT, pull_tokens=ALL)
    batch = stepper.step()
    assert run.sequence.state is SequenceState.PREFILLING
    assert [chunk.sequence for chunk in batch] != [run.sequence.id]
    stepper.run()
    assert run.outputs == run.expected(4)


def test_what_the_own_cache_has_is_not_pulled() -> None:
    stepper = Stepper()
    stepper.submit(PROMPT[: 2 * BLOCK_TOKENS + 1], max_tokens=1)
    stepper.run()
    run = pulling(stepper)
    assert run.sequence.num_cached == 2 * BLOCK_TOKENS
    stepper.end_pull(run, num_tokens=stepper.pull(run))
    stepper.run()
    assert run.outputs == run.expected(4)
    assert run.sequence.usage(now=9.0).cached_tokens == 2 * BLOCK_TOKENS


def test_a_token_is_left_to_compute_and_rows_that_are_read_are() -> None:
    stepper = Stepper()
    whole = stepper.submit(PROMPT[:ALL], pull_tokens=1_000)
    stepper.step()
    assert whole.pull_end == ALL - BLOCK_TOKENS
    read = stepper.submit(PROMPT, pull_tokens=ALL, reading=ScorePrompt(first=10))
    stepper.step()
    assert read.pull_end == 2 * BLOCK_TOKENS


def test_into_blocks_that_somebody_may_still_write_nothing_is_computed() -> None:
    """It starts over on others; what had come is found again."""
    stepper = Stepper()
    run = pulling(stepper)
    stepper.pull(run, fraction=0.5)
    late = run.pulled_into[4]
    stepper.end_pull(run, num_tokens=3 * BLOCK_TOKENS, quarantined=[late])
    assert stepper.in_state(SequenceState.WAITING) == [run]
    stepper.step()
    assert stepper.in_state(SequenceState.PREFILLING) == [run]
    assert run.sequence.block_table.blocks[:3] == list(run.pulled_into[:3])
    assert late not in run.sequence.block_table.blocks
    stepper.scribble(late)
    stepper.run()
    assert run.outputs == run.expected(4) and run.admissions == 1
    stepper.quiet(late)
    assert stepper.all_back


@pytest.mark.parametrize("mode", [Mode.LOCAL, Mode.HANDOVER])
def test_an_abort_waits_for_the_writer_and_keeps_what_came(mode: Mode) -> None:
    stepper = Stepper()
    run = pulling(stepper, mode=mode)
    stepper.abort(run)
    assert run.verdicts == [Abandon()] and not run.freed and not stepper.all_back
    stepper.end_pull(run, num_tokens=stepper.pull(run))
    assert run.freed and stepper.all_back and not run.admissions
    again = stepper.submit(PROMPT)
    stepper.step()
    assert again.sequence.num_cached == ALL


def test_its_end_is_told_once_and_of_nobody_else() -> None:
    stepper = Stepper()
    run, other = pulling(stepper), stepper.submit([1, 2, 3], mode=Mode.REMOTE)
    stepper.step()
    stepper.end_pull(other, num_tokens=0)
    assert other.sequence.state is SequenceState.FETCHING
    for _ in range(2):
        stepper.end_pull(run, num_tokens=0)
    stepper.run()
    assert run.outputs == run.expected(4)


def test_what_somebody_has_is_not_waiting_to_be_computed_until_it_does_not_come() -> None:
    stepper = Stepper()
    queued = stepper.submit(PROMPT, pull_tokens=ALL)
    assert stepper.scheduler.load().waiting_tokens == 1
    stepper.step()
    load = stepper.scheduler.load()
    assert (load.running, load.waiting_tokens) == (1, 1)
    stepper.end_pull(queued, num_tokens=0)
    assert stepper.scheduler.load().waiting_tokens == len(PROMPT)
