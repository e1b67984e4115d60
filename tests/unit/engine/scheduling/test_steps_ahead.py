"""Steps launched before the last one's tokens are read: which may be, what becomes of them."""

from functools import partial

import pytest
from support.fake_runner import StaleBlock
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.batch import PENDING, Chunk
from engine.sequence import Abandon, Complete, Fail, HandOver, Mode, SequenceState
from protocol.messages import Sampling

STORY = list(range(200, 260))


ahead = partial(Stepper, depth=2)


def decoding(stepper: Stepper, *, max_tokens: int = 40, stop_at: int | None = None) -> Run:
    """A sequence whose next decode is launched and not complete."""
    run = stepper.submit(STORY[:5], max_tokens=max_tokens, stop_at=stop_at)
    while run.sequence.state is not SequenceState.DECODING:
        stepper.step()
    assert run.sequence.in_flight == 1
    return run


def own(run: Run, batch: tuple[Chunk, ...]) -> list[Chunk]:
    return [chunk for chunk in batch if chunk.sequence == run.sequence.id]


# -- what goes ahead ----------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 30])
def test_the_same_tokens_come_out_as_without(num_tokens: int) -> None:
    texts = []
    for depth in (1, 2):
        stepper = Stepper(depth=depth)
        runs = [stepper.submit(STORY[:n], max_tokens=num_tokens, seed=n) for n in (1, 4, 11, 20)]
        stepper.run()
        assert stepper.all_back
        texts.append([run.outputs for run in runs])
    assert texts[0] == texts[1]
    assert [len(text) for text in texts[0]] == [num_tokens] * 4


def test_a_decode_goes_ahead_with_a_stand_in_for_the_token_nobody_has_read() -> None:
    stepper = ahead()
    run = decoding(stepper)
    known = len(run.outputs)
    (chunk,) = stepper.launch()
    assert tuple(chunk.token_ids) == (PENDING,)
    assert (chunk.pending, chunk.num_outputs) == (1, known + 1)
    assert chunk.position == 5 + known + 1
    stepper.complete()
    assert len(run.outputs) == known + 1


def test_the_step_after_a_prompts_last_chunk_goes_ahead_of_its_first_token() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:10], max_tokens=4)
    sizes = [[(len(c.token_ids), c.pending) for c in stepper.launch()] for _ in range(2)]
    stepper.complete()
    assert not run.outputs
    (first,) = stepper.launch()
    assert sizes == [[(8, 0)], [(2, 0)]]
    assert (tuple(first.token_ids), first.start, first.pending) == ((PENDING,), 10, 1)


def test_every_step_beside_long_prompts_holds_every_decode() -> None:
    stepper = ahead(num_blocks=200, max_running=7)
    runs = [stepper.submit([300 + i], max_tokens=100) for i in range(3)]
    while len(stepper.in_state(SequenceState.DECODING)) < 3:
        stepper.step()
    for i in range(4):
        stepper.submit([400 + i, *STORY], max_tokens=2)
    for _ in range(20):
        batch = stepper.step()
        assert all(own(run, batch) for run in runs)
        assert sum(len(chunk.token_ids) for chunk in batch) == 8


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1, max_tokens=8, repetition_penalty=1.1),
        Sampling(seed=1, max_tokens=8, presence_penalty=0.5),
        Sampling(seed=1, max_tokens=8, frequency_penalty=-0.5),
    ],
)
def test_a_penalised_sequence_goes_ahead_as_others_do(sampling: Sampling) -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:5], sampling=sampling)
    other = stepper.submit([7], max_tokens=20)
    stepper.launch()
    assert own(run, stepper.launch())
    stepper.run()
    assert (run.outputs, other.outputs) == (run.expected(8), other.expected(20))


# -- what does not ------------------------------------------------------------------------


@pytest.mark.parametrize(("max_context_tokens", "max_tokens"), [(200, 3), (8, 9)])
def test_a_sequence_whose_last_token_is_under_way_is_not_computed_further(
    max_context_tokens: int, max_tokens: int
) -> None:
    stepper = ahead(max_context_tokens=max_context_tokens)
    run = stepper.submit(STORY[:5], max_tokens=max_tokens)
    stepper.run()
    assert run.verdicts == [Complete("length")]
    assert max(chunk.position for batch in stepper.runner.batches for chunk in batch) == 7


def test_a_handover_computes_one_token() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:5], mode=Mode.HANDOVER, max_tokens=9)
    stepper.launch()
    assert not stepper.launch()
    stepper.run()
    assert run.verdicts == [HandOver()]


def test_nobody_is_preempted_for_a_step_ahead() -> None:
    stepper = ahead(num_blocks=4, max_running=2, max_context_tokens=16, token_budget=20)
    runs = [stepper.submit([300 + i] * 6, max_tokens=6) for i in range(2)]
    stepper.launch()
    while len(stepper.launch()) == 2:
        stepper.complete()
    assert [run.sequence.num_launched for run in runs] == [8, 8]
    assert stepper.scheduler.num_preempted == 0
    stepper.run()
    assert stepper.scheduler.num_preempted == 1
    assert [run.outputs for run in runs] == [run.expected(6) for run in runs]


# -- endings while a later step is in flight ----------------------------------------------


def test_a_text_that_ends_ends_at_once_and_frees_when_the_step_ahead_is_over() -> None:
    stepper = ahead()
    run = decoding(stepper, stop_at=3)
    while not run.verdicts:
        stepper.step()
    assert run.verdicts == [Complete("stop")]
    assert run.sequence.state is SequenceState.DRAINING
    assert not run.freed and not stepper.all_back
    stepper.complete()
    assert run.outputs == run.expected(3)
    assert run.freed and stepper.all_back
    stepper.scheduler.check()


def test_an_ended_sequence_takes_no_seat() -> None:
    stepper = ahead(max_running=1)
    run = decoding(stepper, stop_at=3)
    following = stepper.submit([9], max_tokens=2)
    while not run.verdicts:
        stepper.step()
    assert own(following, stepper.launch())
    stepper.run()
    assert following.outputs == following.expected(2)


def test_blocks_filled_by_a_step_ahead_are_found_by_the_next_turn() -> None:
    """The step that was in flight at the end has written the last token's KV."""
    stepper = ahead(token_budget=20)
    run = decoding(stepper, stop_at=3)
    stepper.run()
    following = stepper.submit([*STORY[:5], *run.outputs, 1, 2])
    stepper.run()
    assert following.sequence.num_cached == 8
    assert following.outputs == following.expected(4)


def test_what_an_aborted_sequence_computed_of_unread_tokens_is_not_found_again() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:7], max_tokens=9)
    stepper.launch()  # seven tokens
    stepper.launch()  # the eighth, unread
    stepper.abort(run)
    stepper.run()
    assert stepper.all_back and run.freed
    assert stepper.scheduler.block_counts().cached == 1


@pytest.mark.parametrize("num_complete", [0, 1])
def test_an_abort_answers_at_once_and_frees_after_the_last_step_in_flight(
    num_complete: int,
) -> None:
    stepper = ahead()
    run = decoding(stepper)
    stepper.launch()
    for _ in range(num_complete):
        stepper.complete()
    stepper.abort(run)
    assert run.verdicts == [Abandon()]
    num_outputs = len(run.outputs)
    while stepper.in_flight:
        assert not run.freed
        stepper.complete()
    assert run.freed and stepper.all_back
    assert len(run.outputs) == num_outputs


def test_a_handover_aborted_in_flight_stays_leased_after_the_flight() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    stepper.launch()
    stepper.launch()
    stepper.abort(run)
    stepper.complete()
    assert stepper.in_state(SequenceState.DRAINING) == [run]
    stepper.complete()
    assert stepper.in_state(SequenceState.LEASED) == [run]
    assert run.written == []
    stepper.release(run)
    assert stepper.all_back


def test_a_lease_that_ends_in_flight_lets_the_blocks_go_after_the_flight() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    stepper.launch()
    stepper.abort(run)
    stepper.release(run)
    assert not run.freed
    stepper.complete()
    assert run.freed and stepper.all_back


# -- failures -----------------------------------------------------------------------------


def test_a_step_that_fails_is_undone_with_those_behind_it_and_nobody_loses_a_token() -> None:
    stepper = ahead()
    run = decoding(stepper, max_tokens=9)
    stepper.launch()
    late = stepper.submit(STORY[20:30], max_tokens=2)
    stepper.fail()
    assert run.sequence.num_launched == run.sequence.num_computed
    stepper.run()
    assert run.outputs == run.expected(9) and late.outputs == late.expected(2)
    assert stepper.all_back


def test_what_is_computed_on_a_failed_step_is_never_found() -> None:
    stepper = ahead()
    run = stepper.submit(STORY[:20], max_tokens=2)
    stepper.launch()
    stepper.launch()
    stepper.abort(run)
    stepper.fail()
    assert run.freed and stepper.all_back
    assert stepper.scheduler.block_counts().cached == 0


def test_a_launch_that_fails_is_undone_and_the_step_before_it_is_still_recorded() -> None:
    stepper = ahead()
    run = decoding(stepper, max_tokens=9)
    known = len(run.outputs)
    stepper.fail_launch()
    stepper.complete()
    assert len(run.outputs) == known + 1
    assert stepper.repeat(fails=False)
    stepper.run()
    assert run.outputs == run.expected(9) and stepper.all_back


def test_who_ended_while_its_failed_step_was_in_flight_is_not_computed_again() -> None:
    stepper = ahead()
    run = decoding(stepper)
    stepper.launch()
    stepper.abort(run)
    assert run.sequence.state is SequenceState.DRAINING
    stepper.fail()
    assert run.freed and stepper.all_back
    assert not stepper.repeat(fails=False)


def test_a_sequence_without_a_number_ends_alone_though_it_was_launched_ahead() -> None:
    stepper = ahead()
    bad, good = decoding(stepper), stepper.submit([7], max_tokens=9)
    stepper.runner.mute.add(bad.sequence.id)
    stepper.run()
    assert isinstance(bad.verdicts[0], Fail) and len(bad.verdicts) == 1
    assert good.outputs == good.expected(9)
    assert stepper.all_back


# -- blocks that others want --------------------------------------------------------------


def test_a_block_that_an_equal_one_displaces_stays_while_a_step_reads_it() -> None:
    """Two sequences compute the same prompt; the second moves onto the first one's blocks."""
    stepper = ahead(token_budget=40)
    first, second = (stepper.submit(STORY[:12], max_tokens=4, seed=seed) for seed in (1, 2))
    stepper.launch()
    before = list(second.sequence.block_table.blocks)
    stepper.launch()
    stepper.complete()
    displaced = set(before) - set(second.sequence.block_table.blocks)
    assert len(displaced) == 3
    assert all(stepper.blocks.refs(block) == 1 for block in displaced)
    stepper.scheduler.check()
    stepper.complete()
    assert all(stepper.blocks.refs(block) == 0 for block in displaced)
    stepper.run()
    assert (first.outputs, second.outputs) == (first.expected(4), second.expected(4))


def test_the_fake_runner_tells_when_a_block_changes_hands_under_a_step() -> None:
    stepper = ahead()
    run = decoding(stepper)
    stepper.generations[run.sequence.block_table.blocks[0]] += 1
    with pytest.raises(StaleBlock):
        stepper.complete()


@pytest.mark.parametrize(("num_old", "num_new"), [(5, 6), (10, 3), (11, 4), (12, 5)])
def test_who_makes_room_is_preempted_once_no_step_refers_to_it(num_old: int, num_new: int) -> None:
    """The oldest needs a block and the newest is in flight: that one gets no chunk until it has
    left, so the oldest sits out one step for its own token and one for the flight."""
    stepper = ahead(num_blocks=5, max_running=2, max_context_tokens=20, token_budget=20)
    old = stepper.submit(STORY[:num_old], max_tokens=20 - num_old)
    new = stepper.submit(STORY[20 : 20 + num_new], max_tokens=20 - num_new)
    num_without = 0
    while not stepper.scheduler.num_preempted:
        batch = stepper.step()
        num_without += stepper.num_steps > 1 and not own(old, batch)
        stepper.scheduler.check()
    assert new.sequence.state is SequenceState.WAITING
    assert num_without <= 2
    stepper.run()
    assert old.outputs == old.expected(20 - num_old)
    assert new.outputs == new.expected(20 - num_new)
    assert new.admissions == 1
    assert stepper.all_back


def test_an_old_sequence_gets_its_block_though_newer_ones_are_always_in_flight() -> None:
    stepper = ahead(num_blocks=9, max_running=3, max_context_tokens=36, token_budget=30)
    old = stepper.submit(STORY[: 4 * BLOCK_TOKENS - 1], max_tokens=17)
    for i in range(2):
        stepper.submit([700 + i] * (2 * BLOCK_TOKENS - 1), max_tokens=17)
    while not old.verdicts and stepper.num_steps < 60:
        stepper.step()
    assert old.outputs == old.expected(17)
    assert stepper.num_steps <= 17 + 8  # each time it grows it may wait for one step in flight
    stepper.run()
    assert stepper.all_back
