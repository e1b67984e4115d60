"""Sequences whose blocks others refer to: leases, fetches, and aborts in between."""

import pytest
from support.stepper import Stepper

from engine.batch import SampledToken
from engine.sequence import Abandon, Complete, Fail, FetchLanded, HandOver, Mode, SequenceState

STORY = list(range(200, 260))


# -- handover -----------------------------------------------------------------------------


def test_a_handover_says_one_token_and_keeps_its_blocks_until_the_lease_ends() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:10], mode=Mode.HANDOVER)
    stepper.run()
    assert run.outputs == run.expected(1)
    assert run.verdicts == [HandOver()]
    assert run.written == [8, 10]
    assert stepper.scheduler.block_counts().leased == 3
    stepper.release(run)
    assert stepper.all_back


def test_a_handover_whose_token_ends_it_is_finished_and_still_leased() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:10], mode=Mode.HANDOVER, max_tokens=1)
    stepper.run()
    assert run.verdicts == [Complete("length")]
    assert stepper.scheduler.block_counts().leased == 3
    stepper.release(run)
    assert stepper.all_back


def test_all_blocks_of_a_handover_are_lent_before_its_first_chunk() -> None:
    stepper = Stepper(token_budget=8)
    run = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    stepper.launch()
    assert len(run.leased_blocks) == 5
    stepper.complete()
    assert tuple(run.sequence.block_table.blocks) == tuple(block for block, _ in run.leased_blocks)


def test_a_lease_that_ends_in_the_middle_of_the_prefill_lets_the_blocks_go_at_the_end() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    stepper.step()
    stepper.release(run)
    stepper.run()
    assert run.verdicts == [HandOver()]
    assert stepper.all_back


def test_a_handover_waits_for_the_blocks_of_earlier_leases() -> None:
    stepper = Stepper(num_blocks=6)
    first = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    second = stepper.submit(STORY[30:50], mode=Mode.HANDOVER)
    stepper.run()
    assert second.sequence.state is SequenceState.WAITING
    stepper.release(first)
    stepper.run()
    assert second.verdicts == [HandOver()]


# -- remote -------------------------------------------------------------------------------


def test_a_remote_sequence_waits_for_its_fetch_without_taking_budget() -> None:
    stepper = Stepper(token_budget=8)
    stepper.submit(STORY[30:50])
    remote = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    assert sum(len(chunk.token_ids) for chunk in stepper.step()) == 8
    assert remote.sequence.state is SequenceState.FETCHING
    assert len(remote.sequence.block_table.blocks) == 5


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 19, 20, 21])
def test_a_landed_sequence_decodes_from_the_token_it_was_given(num_tokens: int) -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:num_tokens], mode=Mode.REMOTE, max_tokens=6, num_given=2)
    stepper.step()
    stepper.land(run)
    assert run.outputs == run.expected(1)
    stepper.run()
    assert run.outputs == run.expected(4)
    assert stepper.all_back


def test_only_what_the_own_cache_lacks_is_reserved_for_the_fetch() -> None:
    stepper = Stepper()
    stepper.submit(STORY[:12], max_tokens=1)
    stepper.run()
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    assert run.sequence.num_cached == 12
    stepper.land(run)
    stepper.run()
    assert run.outputs == run.expected(4)


def test_a_wholly_cached_remote_prompt_still_waits_for_its_token() -> None:
    stepper = Stepper()
    stepper.submit(STORY[:12], max_tokens=1)
    stepper.run()
    run = stepper.submit(STORY[:12], mode=Mode.REMOTE)
    stepper.run()
    assert run.sequence.num_cached == 12
    assert run.sequence.state is SequenceState.FETCHING
    stepper.land(run)
    stepper.run()
    assert run.outputs == run.expected(4)


def test_landed_blocks_are_found_by_the_next_sequence() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:12], mode=Mode.REMOTE)
    stepper.step()
    stepper.land(run)
    following = stepper.submit([*STORY[:12], 1])
    stepper.run()
    assert following.sequence.num_cached == 12


def test_a_first_token_that_ends_the_sequence_ends_it() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:12], mode=Mode.REMOTE, max_tokens=1)
    stepper.step()
    stepper.land(run)
    assert run.verdicts == [Complete("length")]
    assert stepper.all_back


def test_a_lost_source_fails_the_sequence_and_frees_its_blocks() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:12], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run, fraction=0.5)
    stepper.lose(run)
    assert run.verdicts == [Fail("source_lost", "source is gone")]
    assert stepper.all_back
    again = stepper.submit(STORY[:12])
    stepper.run()
    assert again.sequence.num_cached == 0


def test_blocks_that_arrived_before_the_source_was_lost_are_not_fetched_again() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run, fraction=0.5)
    stepper.lose(run, num_tokens=10)
    assert run.verdicts == [Fail("source_lost", "source is gone")]
    assert stepper.all_back
    again = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    assert again.sequence.num_cached == 8  # two full blocks; the third was not
    stepper.land(again)
    stepper.run()
    assert again.outputs == again.expected(4)
    assert stepper.all_back


def test_blocks_that_arrived_serve_a_local_prefill_too() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run)
    stepper.lose(run, num_tokens=20)
    local = stepper.submit(STORY[:20])
    stepper.run()
    assert local.sequence.num_cached == 16  # the last token is always computed
    assert local.outputs == local.expected(4)


def test_what_arrived_for_an_aborted_sequence_is_kept_as_well() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run)
    stepper.abort(run)
    stepper.lose(run, num_tokens=12)
    assert stepper.all_back
    assert stepper.scheduler.block_counts().cached == 3


def test_a_request_placed_again_waits_for_what_its_last_attempt_has_brought() -> None:
    """The router hears of the source's death first: 1. abort  2. the next attempt  3. the end of
    the first one's fetch."""
    stepper = Stepper()
    first = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(first)
    stepper.abort(first)
    again = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    other = stepper.submit(STORY[30:50])
    stepper.step()
    assert again.sequence.state is SequenceState.DEFERRED
    stepper.lose(first, num_tokens=16)
    stepper.step()
    assert again.sequence.num_cached == 16
    stepper.land(again)
    stepper.run()
    assert again.outputs == again.expected(4)
    assert other.outputs == other.expected(4)
    assert stepper.all_back


def test_another_prompt_does_not_wait_for_a_fetch_that_unwinds() -> None:
    stepper = Stepper()
    first = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.abort(first)
    other = stepper.submit(STORY[30:50], mode=Mode.REMOTE)
    stepper.step()
    assert other.sequence.state is SequenceState.FETCHING


def test_a_quarantined_block_returns_only_when_its_writer_has_stopped() -> None:
    stepper = Stepper(num_blocks=6)
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    late = run.fetched_into[2:4]
    stepper.lose(run, quarantined=late)
    assert run.freed and not stepper.all_back
    local = stepper.submit(STORY[30:44], max_tokens=2)  # takes every other block
    stepper.step()
    assert not set(local.sequence.block_table.blocks) & set(late)
    for block in late:
        stepper.scribble(block)
    stepper.run()
    assert local.outputs == local.expected(2)
    stepper.quiet(*late)
    assert stepper.all_back
    stepper.scheduler.check()


def test_the_end_of_a_quarantine_nobody_knows_is_harmless() -> None:
    stepper = Stepper()
    stepper.scheduler.quiet((1, 2))
    stepper.scheduler.check()
    assert stepper.all_back


def test_a_source_lost_while_the_sequence_still_waits_ends_it() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:12], mode=Mode.REMOTE)
    stepper.lose(run)
    assert run.verdicts == [Fail("source_lost", "source is gone")]
    assert run.freed


def test_a_landed_sequence_that_is_preempted_computes_its_prompt_itself() -> None:
    stepper = Stepper(num_blocks=10, max_running=4, max_context_tokens=40)
    stepper.submit(STORY[:14], max_tokens=20)
    stepper.step()
    remote = stepper.submit(STORY[20:34], mode=Mode.REMOTE, max_tokens=20)
    stepper.step()
    stepper.land(remote)
    stepper.run()
    assert stepper.scheduler.num_preempted > 0
    assert remote.outputs == remote.expected(20)
    assert remote.admissions == 1


def test_reservations_that_fill_the_pool_do_not_block_each_other() -> None:
    stepper = Stepper(num_blocks=8, max_running=4)
    runs = [stepper.submit(STORY[i : i + 16], mode=Mode.REMOTE, max_tokens=8) for i in range(4)]
    for _ in range(100):
        stepper.step()
        for run in stepper.in_state(SequenceState.FETCHING):
            stepper.land(run)
    assert [run.outputs for run in runs] == [run.expected(8) for run in runs]


# -- aborts -------------------------------------------------------------------------------


def test_abort_while_the_prefill_is_in_flight_frees_its_blocks_once() -> None:
    """mini-sglang: freed at the abort, then cached by the returning forward: two owners.

    1. a prefill chunk is launched  2. the abort arrives  3. the chunk completes.
    """
    stepper = Stepper()
    run = stepper.submit(STORY[:20], max_tokens=4)
    stepper.launch()
    stepper.abort(run)
    assert stepper.blocks.num_owned == 5
    stepper.complete()
    assert run.verdicts == [Abandon()]
    stepper.scheduler.check()
    assert stepper.all_back


def test_abort_while_the_token_in_flight_is_the_last_one_ends_once() -> None:
    """mini-sglang: ended by the abort and again by the token: freed twice.

    1. the last decode is launched  2. the abort arrives  3. the token completes the request.
    """
    stepper = Stepper()
    run = stepper.submit([1], max_tokens=2)
    stepper.step()
    stepper.launch()
    stepper.abort(run)
    stepper.complete()
    assert run.verdicts == [Abandon()]
    assert len(run.outputs) == 1
    stepper.scheduler.check()
    assert stepper.all_back


def test_abort_between_landing_and_the_next_step_ends_once() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:8], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run)
    stepper.scheduler.fetch_done(run.sequence.id, FetchLanded(SampledToken(token_id=1)))
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Abandon()]
    assert run.outputs == []
    assert stepper.all_back


def test_abort_while_fetching_answers_at_once_and_frees_when_the_writer_has_stopped() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.abort(run)
    assert run.verdicts == [Abandon()]
    assert stepper.blocks.num_owned == 5
    stepper.lose(run)
    assert run.verdicts == [Abandon()]
    assert stepper.all_back


@pytest.mark.parametrize("num_steps", [1, 3])
def test_abort_of_a_handover_keeps_its_blocks_until_the_lease_ends(num_steps: int) -> None:
    """Mid-prefill (1 step) its ending is the abort; afterwards (3) it had its ending already."""
    stepper = Stepper()
    run = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    for _ in range(num_steps):
        stepper.step()
    stepper.abort(run)
    assert run.verdicts == [Abandon() if num_steps == 1 else HandOver()]
    assert stepper.scheduler.block_counts().leased == 5
    stepper.release(run)
    assert stepper.all_back


@pytest.mark.parametrize("mode", Mode)
def test_abort_in_the_queue_leaves_no_trace(mode: Mode) -> None:
    stepper = Stepper()
    run = stepper.submit(STORY, mode=mode)
    stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Abandon()]
    assert run.freed
    assert stepper.runner.batches == []


@pytest.mark.parametrize("mode", Mode)
def test_commands_that_come_twice_or_too_late_are_harmless(mode: Mode) -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:6], mode=mode)
    stepper.step()
    for _ in range(2):
        stepper.abort(run)
    for _ in range(2):
        stepper.lose(run)
        stepper.scheduler.fetch_done(run.sequence.id, FetchLanded(SampledToken(token_id=1)))
        stepper.release(run)
        stepper.abort(run)
    stepper.run()
    assert run.verdicts == [Abandon() if mode is not Mode.HANDOVER else HandOver()]
    assert stepper.all_back
    stepper.scheduler.check()
