import pytest
from support.fake_runner import continuation
from support.stepper import BLOCK_TOKENS, EOS, Run, Stepper

from engine.batch import AdapterId, SampledToken
from engine.limits import EngineLimits
from engine.sequence import Complete, Fail, HandOver, Mode, SequenceState
from protocol.messages import FinishReason, Sampling

STORY = list(range(200, 260))


def decoding(stepper: Stepper, *, count: int = 1, max_tokens: int = 40) -> list[Run]:
    runs = [stepper.submit([300 + i], max_tokens=max_tokens) for i in range(count)]
    while len(stepper.in_state(SequenceState.DECODING)) < count:
        stepper.step()
    return runs


# -- batches ------------------------------------------------------------------------------


def test_a_sequence_says_what_the_model_says() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY, max_tokens=9)
    stepper.run()
    assert run.outputs == continuation(STORY, seed=1, num_tokens=9)
    assert run.verdicts == [Complete("length")]


def test_a_long_prompt_is_computed_in_chunks_within_the_budget() -> None:
    stepper = Stepper(token_budget=8)
    stepper.submit(STORY[:20], max_tokens=1)
    sizes = []
    while batch := stepper.step():
        sizes.append(sum(len(chunk.token_ids) for chunk in batch))
    assert sizes == [8, 8, 4]


def test_only_the_last_chunk_of_a_prompt_samples() -> None:
    stepper = Stepper(token_budget=8)
    stepper.submit(STORY[:12], max_tokens=1)
    assert stepper.step()[0].sampling is None
    last = stepper.step()[0]
    assert last.sampling is not None
    assert last.position == 12


def test_every_decode_gets_its_token_in_every_step_beside_a_queue_of_long_prompts() -> None:
    stepper = Stepper(token_budget=8, num_blocks=200, max_running=7)
    runs = decoding(stepper, count=3)
    for i in range(4):
        stepper.submit([400 + i, *STORY], max_tokens=2)
    for _ in range(20):
        before = [len(run.outputs) for run in runs]
        batch = stepper.step()
        assert [len(run.outputs) for run in runs] == [count + 1 for count in before]
        assert sum(len(chunk.token_ids) for chunk in batch) == 8


def test_short_prompts_share_one_step() -> None:
    stepper = Stepper(token_budget=8)
    stepper.submit([1, 2, 3])
    stepper.submit([4, 5, 6])
    stepper.submit([7, 8, 9])
    assert [len(chunk.token_ids) for chunk in stepper.step()] == [3, 3, 2]


def test_prefill_gets_on_beside_a_full_batch_of_decodes() -> None:
    with pytest.raises(ValueError, match="prefill would stand still"):
        EngineLimits(max_running=8, max_waiting=1, token_budget=8, max_context_tokens=64)


def test_no_more_run_than_may() -> None:
    stepper = Stepper(max_running=2)
    runs = [stepper.submit([i], max_tokens=4) for i in range(5)]
    while stepper.step():
        assert stepper.scheduler.load().running <= 2
    assert all(run.verdicts == [Complete("length")] for run in runs)


def test_two_sequences_of_one_prompt_share_what_the_first_has_computed() -> None:
    stepper = Stepper(token_budget=100)
    stepper.submit(STORY, max_tokens=1)
    stepper.run()
    second = stepper.submit(STORY, max_tokens=1)
    assert [len(chunk.token_ids) for chunk in stepper.step()] == [BLOCK_TOKENS]
    assert second.sequence.num_cached == len(STORY) - BLOCK_TOKENS


def test_a_wholly_cached_prompt_still_computes_one_block_to_sample_from() -> None:
    stepper = Stepper(token_budget=100)
    for _ in range(2):
        run = stepper.submit(STORY[:16], max_tokens=3)
        stepper.run()
        assert run.outputs == run.expected(3)


def test_the_next_turn_of_a_conversation_finds_the_generated_tokens() -> None:
    stepper = Stepper(token_budget=100)
    first = stepper.submit(STORY[:10], max_tokens=11)
    stepper.run()
    second = stepper.submit([*STORY[:10], *first.outputs, 1, 2, 3])
    stepper.run()
    assert second.sequence.num_cached == 20


def test_chunks_name_the_adapter_of_their_submission_and_its_blocks_are_not_anothers() -> None:
    stepper = Stepper(token_budget=100)
    lora = AdapterId("lora")
    for adapter in (None, lora, lora):
        stepper.submit(STORY[:10], max_tokens=2, adapter=adapter)
        (chunk,) = stepper.step()
        assert chunk.adapter == adapter
        stepper.run()
    caches = [run.sequence.num_cached for run in stepper.runs.values()]
    assert caches == [0, 0, 8]


# -- endings ------------------------------------------------------------------------------


def ending(sampling: Sampling, *, eos: int | None = None, num_given: int = 0) -> Run:
    eos_token_ids = () if eos is None else (eos,)
    stepper = Stepper(eos_token_ids=eos_token_ids)
    run = stepper.submit(STORY[:5], sampling=sampling, num_given=num_given)
    stepper.run()
    assert stepper.all_back
    return run


SAID = continuation(STORY[:5], seed=1, num_tokens=8)


def test_an_eos_token_ends_the_sequence() -> None:
    run = ending(Sampling(seed=1, max_tokens=8), eos=SAID[2])
    assert run.outputs == SAID[:3]
    assert run.verdicts == [Complete("stop")]


def test_an_eos_token_that_is_ignored_does_not() -> None:
    run = ending(Sampling(seed=1, max_tokens=8, ignore_eos=True), eos=SAID[2])
    assert run.outputs == SAID
    assert run.verdicts == [Complete("length")]


def test_a_stop_token_ends_the_sequence_even_when_eos_is_ignored() -> None:
    sampling = Sampling(seed=1, max_tokens=8, ignore_eos=True, stop_token_ids=(SAID[1],))
    assert ending(sampling).outputs == SAID[:2]


def test_nothing_but_text_ends_a_sequence_within_its_min_tokens() -> None:
    sampling = Sampling(seed=1, max_tokens=8, min_tokens=3, stop_token_ids=(SAID[2], SAID[4]))
    assert ending(sampling).outputs == SAID[:5]


def test_given_tokens_count_toward_max_tokens_and_min_tokens() -> None:
    sampling = Sampling(seed=1, max_tokens=6, min_tokens=2, stop_token_ids=(SAID[3],))
    assert ending(sampling, num_given=3).outputs == SAID[3:4]
    assert ending(Sampling(seed=1, max_tokens=6), num_given=3).outputs == SAID[3:6]


def test_a_stop_string_ends_the_sequence_in_the_step_that_completes_it() -> None:
    stepper = Stepper()
    run = stepper.submit(STORY[:5], max_tokens=20, stop_at=4)
    stepper.run()
    assert len(run.outputs) == 4
    assert run.verdicts == [Complete("stop")]


def test_a_sequence_ends_where_the_context_ends() -> None:
    stepper = Stepper(max_context_tokens=12)
    run = stepper.submit(STORY[:9], max_tokens=20)
    stepper.run()
    assert len(run.outputs) == 3
    assert run.verdicts == [Complete("length")]


def test_a_sequence_alone_may_fill_the_whole_pool() -> None:
    stepper = Stepper(num_blocks=5)
    run = stepper.submit(STORY[:2], max_tokens=100)
    stepper.run()
    assert len(run.tokens) + len(run.outputs) == 5 * BLOCK_TOKENS
    assert run.verdicts == [Complete("length")]


@pytest.mark.parametrize("mode", Mode)
def test_what_can_never_fit_is_refused_with_the_numbers(mode: Mode) -> None:
    stepper = Stepper(num_blocks=5)
    run = stepper.submit(STORY[:20], mode=mode)
    message = "20 tokens leave no room in a context of 20"
    assert run.verdicts == [Fail("too_long", message)]
    assert run.freed


def test_a_full_queue_refuses() -> None:
    stepper = Stepper(max_waiting=2, max_running=1)
    (running,) = decoding(stepper)
    runs = [stepper.submit([i]) for i in range(3)]
    assert runs[2].verdicts == [Fail("overloaded", "2 requests are waiting already")]
    stepper.run()
    assert [run.verdicts for run in (running, *runs[:2])] == [[Complete("length")]] * 3


@pytest.mark.parametrize(("max_running", "num_blocks"), [(4, 64), (7, 4)])
def test_a_burst_that_finds_seats_and_blocks_is_not_refused(
    max_running: int, num_blocks: int
) -> None:
    stepper = Stepper(max_waiting=2, max_running=max_running, num_blocks=num_blocks)
    runs = [stepper.submit([i]) for i in range(7)]
    assert [bool(run.verdicts) for run in runs] == [False] * 6 + [True]
    stepper.run()
    assert [run.verdicts for run in runs[:6]] == [[Complete("length")]] * 6


def test_a_continuation_that_has_all_its_tokens_ends_without_another() -> None:
    run = ending(Sampling(seed=1, max_tokens=3), num_given=3)
    assert run.outputs == []
    assert run.verdicts == [Complete("length")]


def test_a_step_that_failed_is_repeated_one_by_one_and_ends_who_fails_alone() -> None:
    stepper = Stepper()
    runs = [stepper.submit([number], max_tokens=3) for number in range(3)]
    stepper.launch()
    stepper.fail()
    for number in range(3):
        (chunk,) = stepper.repeat(fails=number == 1)
        assert chunk.sequence == runs[number].sequence.id
    stepper.run()
    assert runs[1].verdicts == [Fail("internal", "the fake model fails")]
    for run in (runs[0], runs[2]):
        assert run.verdicts == [Complete("length")] and run.outputs == run.expected(3)
    assert stepper.all_back


def test_what_a_step_without_a_number_computed_is_found_by_nobody() -> None:
    """Its KV may be damaged."""
    stepper = Stepper()
    bad = stepper.submit(STORY[:8])
    stepper.runner.mute.add(bad.sequence.id)
    stepper.step()
    assert bad.freed
    assert not stepper.cache.take_changes() and not stepper.blocks.num_cached


def test_a_sequence_without_a_number_ends_alone_and_for_good() -> None:
    stepper = Stepper()
    good, bad = decoding(stepper, count=2)
    stepper.runner.mute.add(bad.sequence.id)
    stepper.run()
    message = "the model answers no number for its next token"
    assert bad.verdicts == [Fail("internal", message, final=True)]
    assert good.outputs == good.expected(40)
    assert stepper.all_back


def recorded_at_once(
    stepper: Stepper, *said: int, max_tokens: int = 20, min_tokens: int = 0
) -> Run:
    """A sequence whose prompt's step samples all of these."""
    sampling = Sampling(seed=1, max_tokens=max_tokens, min_tokens=min_tokens)
    run = stepper.submit(STORY[:5], sampling=sampling, stop_at=6)
    stepper.launch()
    stepper.in_flight.popleft().tokens()
    stepper.record({run.sequence.id: [SampledToken(token_id=token) for token in said]})
    return run


def test_several_tokens_of_one_step_are_recorded_in_their_order() -> None:
    stepper = Stepper()
    run = recorded_at_once(stepper, 7, 8, 9)
    assert run.outputs == run.sequence.outputs == [7, 8, 9]
    assert not run.verdicts and run.sequence.state is SequenceState.DECODING
    stepper.run()
    assert run.outputs[3:] == continuation([*run.tokens, 7, 8, 9], seed=1, num_tokens=3)
    assert stepper.all_back


@pytest.mark.parametrize(
    ("said", "rule", "outputs", "reason"),
    [
        ((7, EOS, 9), {}, [7, EOS], "stop"),
        ((EOS, 8, EOS, 9), {"min_tokens": 2}, [EOS, 8, EOS], "stop"),
        ((7, 8, 9), {"max_tokens": 2}, [7, 8], "length"),
        ((1, 2, 3, 4, 5, 6, 7, 8), {}, [1, 2, 3, 4, 5, 6], "stop"),
    ],
)
def test_what_follows_an_ending_in_one_step_is_nobodys(
    said: tuple[int, ...], rule: dict[str, int], outputs: list[int], reason: FinishReason
) -> None:
    run = recorded_at_once(Stepper(eos_token_ids=(EOS,)), *said, **rule)
    assert run.outputs == run.sequence.outputs == outputs
    assert run.verdicts == [Complete(reason)] and run.freed


# -- preemption ---------------------------------------------------------------------------


def test_preempted_sequences_finish_with_identical_tokens() -> None:
    stepper = Stepper(num_blocks=10, max_running=4, max_context_tokens=40)
    runs = [stepper.submit(STORY[i : i + 6], max_tokens=20) for i in range(4)]
    stepper.run()
    assert stepper.scheduler.num_preempted > 0
    for run in runs:
        assert run.outputs == run.expected(20)
        assert run.admissions == 1


def test_the_newest_makes_room_and_returns_to_the_head_of_the_queue() -> None:
    stepper = Stepper(num_blocks=6, max_running=2, token_budget=16)
    old = stepper.submit(STORY[:8], max_tokens=16)
    new = stepper.submit(STORY[20:30], max_tokens=8)
    late = stepper.submit([1], max_tokens=1)
    while not stepper.scheduler.num_preempted:
        stepper.step()
    assert old.sequence.state is SequenceState.DECODING
    while new.sequence.state is SequenceState.WAITING:
        assert not late.admissions
        stepper.step()
    stepper.run()
    assert [len(run.outputs) for run in (old, new, late)] == [16, 8, 1]


def test_the_least_urgent_makes_room_though_it_came_first() -> None:
    stepper = Stepper(num_blocks=6, max_running=2, token_budget=16)
    idle = stepper.submit(STORY[:8], max_tokens=16, priority=1)
    urgent = stepper.submit(STORY[20:30], max_tokens=8)
    while not stepper.scheduler.num_preempted:
        stepper.step()
    assert idle.sequence.state is SequenceState.WAITING
    stepper.run()
    assert [run.outputs for run in (idle, urgent)] == [idle.expected(16), urgent.expected(8)]


def test_the_prompt_of_the_more_urgent_is_computed_first() -> None:
    stepper = Stepper(token_budget=8, max_running=3)
    stepper.submit(STORY[:20], max_tokens=1, priority=3)
    stepper.step()
    urgent = stepper.submit(STORY[20:28], max_tokens=1)
    assert [chunk.sequence for chunk in stepper.step()] == [urgent.sequence.id]
    stepper.run()


def test_a_decode_grows_into_cached_blocks_before_anybody_is_preempted() -> None:
    stepper = Stepper(num_blocks=8)
    stepper.submit(STORY[:16], max_tokens=1)
    stepper.run()
    runs = [stepper.submit([i], max_tokens=15) for i in range(2)]
    stepper.run()
    assert stepper.scheduler.num_preempted == 0
    assert [run.outputs for run in runs] == [run.expected(15) for run in runs]


def test_a_prompt_whose_blocks_are_in_use_already_fits_beside_them() -> None:
    stepper = Stepper(num_blocks=8)
    first = stepper.submit(STORY[:22], max_tokens=5)
    while first.sequence.state is not SequenceState.DECODING:
        stepper.step()
    second = stepper.submit(STORY[:20], max_tokens=1)
    stepper.step()
    assert second.verdicts == [Complete("length")]
    assert not first.verdicts


def test_a_handover_is_never_preempted_however_new() -> None:
    stepper = Stepper(num_blocks=8, token_budget=8, max_running=4)
    old, new = (stepper.submit([i], max_tokens=12) for i in range(2))
    stepper.step()
    leased = stepper.submit(STORY[:20], mode=Mode.HANDOVER)
    stepper.run()
    assert stepper.scheduler.num_preempted > 0
    assert leased.verdicts == [HandOver()]
    assert leased.sequence.block_table.blocks == [block for block, _ in leased.leased_blocks]
    stepper.release(leased)
    stepper.run()
    assert [run.outputs for run in (old, new)] == [run.expected(12) for run in (old, new)]


def test_a_preempted_sequence_counts_as_tokens_to_compute_again() -> None:
    stepper = Stepper(num_blocks=6, max_running=2, token_budget=16)
    stepper.submit(STORY[:8], max_tokens=16)
    new = stepper.submit(STORY[20:30], max_tokens=8)
    while not stepper.scheduler.num_preempted:
        assert stepper.scheduler.load().waiting_tokens <= 18
        stepper.step()
    load = stepper.scheduler.load()
    assert (load.running, load.waiting) == (1, 1)
    assert load.waiting_tokens == new.sequence.num_tokens


def test_the_load_tells_how_long_the_contexts_are_that_decode() -> None:
    stepper = Stepper(num_blocks=16, max_running=2, token_budget=16)
    first, second = stepper.submit(STORY[:8], max_tokens=8), stepper.submit(STORY[20:30])
    assert stepper.scheduler.load().context_tokens == 0
    while not (first.outputs and second.outputs):
        stepper.step()
    computed = first.sequence.num_computed + second.sequence.num_computed
    assert stepper.scheduler.load().context_tokens == computed >= 18


def test_requests_are_admitted_in_the_order_they_came() -> None:
    """A short prompt that would fit does not overtake a long one that does not."""
    stepper = Stepper(num_blocks=8, max_running=4)
    stepper.submit(STORY[:20], max_tokens=4)
    stepper.step()
    long = stepper.submit(STORY[30:50], max_tokens=1)
    short = stepper.submit([1], max_tokens=1)
    while not long.admissions:
        assert not short.admissions
        stepper.step()
    stepper.run()
    assert short.verdicts == [Complete("length")]


def test_nobody_starves_while_new_requests_keep_coming() -> None:
    stepper = Stepper(num_blocks=12, max_running=3, max_context_tokens=48)
    first = stepper.submit(STORY[:30], max_tokens=10)
    for i in range(60):
        if stepper.scheduler.load().waiting < 3:
            stepper.submit([500 + i] * 9, max_tokens=12)
        stepper.step()
    assert first.verdicts == [Complete("length")]
