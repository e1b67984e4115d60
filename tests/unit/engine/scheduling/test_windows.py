"""Sequences of models whose layers see windows: what is allocated, lent, fetched and given back."""

import pytest
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.kvcache.windows import NO_BLOCK, Window
from engine.sequence import Complete, Fail, HandOver, Mode, SequenceState

STORY = list(range(200, 260))
MIXED: tuple[Window, ...] = (None, 6)
ALONE: tuple[Window, ...] = (6,)
KEPT = 3
"""Blocks that a window of 6 reaches at most, from the last whole one: tokens in 2, and the next."""


def present(run: Run, *, group: int = 0, num_groups: int = 1) -> list[int]:
    """Token blocks for which a group has a block."""
    table = run.sequence.block_table.blocks[group::num_groups]
    return [index for index, block in enumerate(table) if block != NO_BLOCK]


@pytest.mark.parametrize("windows", [MIXED, ALONE, (9, 5), (None, 8, 3), (1,)])
def test_a_sequence_says_what_a_model_says_that_keeps_everything(
    windows: tuple[Window, ...],
) -> None:
    stepper = Stepper(windows=windows)
    run = stepper.submit(STORY[:21], max_tokens=30)
    stepper.run()
    assert run.outputs == run.expected(30)
    assert run.verdicts == [Complete("length")]
    assert stepper.all_back


def test_a_decode_holds_all_blocks_of_the_full_group_and_the_window_of_the_other() -> None:
    stepper = Stepper(windows=MIXED)
    run = stepper.submit(STORY[:21], max_tokens=30)
    while len(run.outputs) < 29:
        stepper.step()
    num_blocks = len(run.sequence.block_table.blocks) // 2
    assert present(run, group=0, num_groups=2) == list(range(num_blocks))
    assert present(run, group=1, num_groups=2) == list(range(num_blocks))[-KEPT:]


def test_blocks_that_windows_leave_behind_are_used_by_others_while_the_sequence_runs() -> None:
    """Three sequences of 11 blocks each, on 12."""
    stepper = Stepper(windows=ALONE, num_blocks=12, max_running=3)
    runs = [stepper.submit([300 + i], max_tokens=40) for i in range(3)]
    stepper.run()
    assert stepper.scheduler.num_preempted == 0
    assert max(stepper.generations) > 1
    assert [run.outputs for run in runs] == [run.expected(40) for run in runs]


def test_a_launched_forward_keeps_what_it_reads() -> None:
    stepper = Stepper(windows=ALONE, token_budget=8)
    run = stepper.submit(STORY[:20], max_tokens=2)
    stepper.step()
    before = present(run)
    stepper.launch()
    assert set(before) < set(present(run))
    stepper.complete()
    assert not set(before) < set(present(run))


def test_preempted_sequences_finish_with_identical_tokens() -> None:
    stepper = Stepper(windows=MIXED, num_blocks=18, max_running=4, max_context_tokens=36)
    runs = [stepper.submit(STORY[i : i + 6], max_tokens=20) for i in range(4)]
    stepper.run()
    assert stepper.scheduler.num_preempted > 0
    assert [run.outputs for run in runs] == [run.expected(20) for run in runs]


def test_a_pool_holds_as_many_tokens_as_it_has_blocks_for_every_group() -> None:
    stepper = Stepper(windows=MIXED, num_blocks=11)
    assert stepper.scheduler.max_context_tokens == 5 * BLOCK_TOKENS
    run = stepper.submit(STORY[:20])
    message = "20 tokens leave no room in a context of 20"
    assert run.verdicts == [Fail("too_long", message)]


@pytest.mark.parametrize("mode", [Mode.LOCAL, Mode.HANDOVER])
def test_a_prompt_longer_than_the_pool_is_computed_when_its_windows_fit(mode: Mode) -> None:
    stepper = Stepper(windows=ALONE, num_blocks=10, token_budget=8)
    assert stepper.scheduler.max_context_tokens == 200
    run = stepper.submit(STORY[:55], mode=mode, max_tokens=30)
    stepper.run()
    assert len(run.sequence.tokens(0, 55)) > 10 * BLOCK_TOKENS
    assert run.outputs == run.expected(30 if mode is Mode.LOCAL else 1)
    stepper.release(run)
    assert stepper.all_back


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("windows", [MIXED, ALONE, (None, 9, 9), (5, 1)])
@pytest.mark.parametrize("num_blocks", [9, 12, 17, 30])
def test_whatever_is_not_too_long_fits_into_an_empty_pool(
    windows: tuple[Window, ...], mode: Mode, num_blocks: int
) -> None:
    most = Stepper(windows=windows, num_blocks=num_blocks).scheduler.max_context_tokens
    assert most > 0
    for num_tokens in range(max(1, most - 6), most):
        stepper = Stepper(windows=windows, num_blocks=num_blocks)
        run = stepper.submit([i % 90 for i in range(num_tokens)], mode=mode, max_tokens=9)
        stepper.step()
        assert run.admissions == 1
        if mode is Mode.REMOTE:
            stepper.land(run)
        stepper.run()
        stepper.release(run)
        assert run.verdicts and not isinstance(run.verdicts[0], Fail)
        assert stepper.scheduler.num_preempted == 0
        assert stepper.all_back


def test_nobody_is_admitted_on_blocks_that_another_was_promised() -> None:
    """Of 10 blocks the first holds 2, and will hold up to 7 while it is computed."""
    stepper = Stepper(windows=ALONE, num_blocks=10, token_budget=8)
    first = stepper.submit(STORY[:50], max_tokens=1)
    stepper.step()
    second = stepper.submit(STORY[20:40], max_tokens=1)
    while not first.verdicts:
        stepper.launch()
        assert not second.admissions, "though the last chunk leaves budget"
        stepper.complete()
    stepper.run()
    assert second.verdicts == [Complete("length")]


def test_a_decode_grows_without_what_a_prefill_was_promised() -> None:
    """It makes the newest go rather than take what that one counts on."""
    stepper = Stepper(windows=(None, 14), num_blocks=26, token_budget=8, max_running=2)
    old = stepper.submit(STORY[:14], max_tokens=30)
    while not old.outputs:
        stepper.step()
    new = stepper.submit(STORY[20:50], max_tokens=8)
    stepper.run()
    assert stepper.scheduler.num_preempted > 0
    assert (old.outputs, new.outputs) == (old.expected(30), new.expected(8))


def test_a_window_that_is_shared_does_not_hold_up_who_shares_it() -> None:
    """What the first leaves behind the others still hold: their promises pay for it."""
    stepper = Stepper(windows=ALONE, num_blocks=14, token_budget=8, max_running=2)
    first = stepper.submit(STORY[:50], max_tokens=4)
    for _ in range(3):
        stepper.step()
    others = [stepper.submit([*STORY[:20], 7, 7, i], max_tokens=30) for i in range(3)]
    stepper.run()
    for run in (first, *others):
        assert run.outputs == run.expected(len(run.outputs))
        assert run.verdicts == [Complete("length")]


@pytest.mark.parametrize("windows", [MIXED, ALONE])
def test_a_prompt_is_found_after_its_windows_have_moved_on(windows: tuple[Window, ...]) -> None:
    stepper = Stepper(windows=windows, token_budget=100)
    stepper.submit(STORY[:24], max_tokens=20)
    stepper.run()
    again = stepper.submit(STORY[:22], max_tokens=4)
    longer = stepper.submit([*STORY[:24], 1, 2, 3], max_tokens=4)
    stepper.run()
    assert (again.sequence.num_cached, longer.sequence.num_cached) == (20, 24)
    assert [run.outputs for run in (again, longer)] == [run.expected(4) for run in (again, longer)]


# -- handover -----------------------------------------------------------------------------


def test_a_handover_lends_the_window_and_frees_the_rest_while_it_computes() -> None:
    stepper = Stepper(windows=ALONE, num_blocks=8, token_budget=8)
    run = stepper.submit(STORY[:28], mode=Mode.HANDOVER)
    second = stepper.submit(STORY[30:40], mode=Mode.HANDOVER)
    stepper.step()
    assert [block != NO_BLOCK for block, _ in run.leased_blocks] == [False] * 5 + [True] * 2
    assert not second.admissions
    stepper.run()
    assert present(run) == [5, 6]
    assert [r.verdicts for r in (run, second)] == [[HandOver()]] * 2
    stepper.release(run)
    stepper.release(second)
    assert stepper.all_back


def test_a_lease_that_ends_early_lets_the_window_go_as_the_prefill_goes_on() -> None:
    stepper = Stepper(windows=ALONE, token_budget=8)
    run = stepper.submit(STORY[:30], mode=Mode.HANDOVER)
    stepper.step()
    stepper.release(run)
    stepper.run()
    assert run.verdicts == [HandOver()]
    assert stepper.all_back


# -- remote -------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [MIXED, ALONE])
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 19, 20, 21, 40])
def test_what_lands_is_what_the_source_lends(windows: tuple[Window, ...], num_tokens: int) -> None:
    """Nothing is asked for that is not lent, and the tokens are those of one engine."""
    prefill, decode = Stepper(windows=windows), Stepper(windows=windows)
    lent = prefill.submit(STORY[:num_tokens], mode=Mode.HANDOVER)
    prefill.run()
    fetched = decode.submit(STORY[:num_tokens], mode=Mode.REMOTE, max_tokens=12)
    decode.step()
    wanted = [block != NO_BLOCK for block in fetched.fetched_into]
    assert wanted == [block != NO_BLOCK for block, _ in lent.leased_blocks]
    decode.land(fetched)
    decode.run()
    assert fetched.outputs == fetched.expected(12)
    assert decode.all_back


def test_a_remote_prompt_takes_blocks_for_its_window_only() -> None:
    stepper = Stepper(windows=(None, 6, 6), num_blocks=45)
    run = stepper.submit(STORY[:40], mode=Mode.REMOTE)
    stepper.step()
    assert stepper.blocks.num_owned == 10 + 2 + 2
    stepper.land(run)
    stepper.run()
    assert run.outputs == run.expected(4)


@pytest.mark.parametrize("mode", [Mode.REMOTE, Mode.LOCAL])
@pytest.mark.parametrize("windows", [ALONE, (1,)])
def test_what_no_layer_sees_does_not_count_as_cached(
    windows: tuple[Window, ...], mode: Mode
) -> None:
    stepper = Stepper(windows=windows)
    run = stepper.submit(STORY[:30], mode=mode)
    stepper.step()
    assert run.sequence.num_cached == 0


def test_a_landed_prompt_is_found_by_the_next_sequence() -> None:
    stepper = Stepper(windows=MIXED)
    run = stepper.submit(STORY[:22], mode=Mode.REMOTE)
    stepper.step()
    stepper.land(run)
    following = stepper.submit([*STORY[:20], 1])
    stepper.run()
    assert following.sequence.num_cached == 20
    assert following.outputs == following.expected(4)


def test_a_fetch_uses_the_full_groups_prefix_without_its_windows() -> None:
    """The windows of the stem are gone; those of the whole prompt come with the fetch."""
    stepper = Stepper(windows=MIXED)
    first = stepper.submit(STORY[:40], mode=Mode.REMOTE)
    stepper.step()
    stepper.land(first)
    stepper.run()
    branch = [*STORY[:20], *STORY[40:52]]
    remote, local = stepper.submit(branch, mode=Mode.REMOTE), stepper.submit(branch)
    stepper.step()
    assert (remote.sequence.num_cached, local.sequence.num_cached) == (20, 0)
    stepper.land(remote)
    stepper.run()
    assert [run.outputs for run in (remote, local)] == [remote.expected(4)] * 2


def test_blocks_that_arrived_before_the_source_was_lost_are_not_fetched_again() -> None:
    stepper = Stepper(windows=MIXED)
    run = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    stepper.fetch(run, fraction=0.8)
    stepper.lose(run, num_tokens=16)
    assert stepper.all_back
    again = stepper.submit(STORY[:20], mode=Mode.REMOTE)
    stepper.step()
    assert again.sequence.num_cached == 16
    stepper.land(again)
    stepper.run()
    assert again.outputs == again.expected(4)


def test_a_handover_of_a_cached_prompt_computes_one_block_and_lends_the_window() -> None:
    stepper = Stepper(windows=MIXED, token_budget=100)
    for _ in range(2):
        run = stepper.submit(STORY[:24], mode=Mode.HANDOVER)
        stepper.run()
        stepper.release(run)
    assert run.sequence.num_cached == 20
    assert run.sequence.state is SequenceState.FREED
    assert NO_BLOCK not in [block for block, _ in run.leased_blocks][-2 * 2 :]
