"""What is read of a prompt besides the token after it: every row once, whatever happens."""

from support.stepper import Stepper

from engine.sequence import Complete, Fail, HandOver, Mode
from protocol.readings import PoolPrompt, ScorePrompt

PROMPT = list(range(30, 50))
ALL = list(range(19))
"""The last token's row scores nothing of the prompt."""


def test_a_prompt_is_scored_chunk_by_chunk_before_its_first_token() -> None:
    stepper = Stepper(token_budget=8)
    run = stepper.submit(PROMPT, reading=ScorePrompt())
    stepper.run()
    assert run.reads == ALL
    assert run.outputs == run.expected(4)


def test_what_lies_before_the_scored_tokens_comes_from_the_cache_and_nothing_else() -> None:
    stepper = Stepper(token_budget=8)
    stepper.submit(PROMPT)
    stepper.run()
    late = stepper.submit(PROMPT, reading=ScorePrompt(first=13))
    whole = stepper.submit(PROMPT, reading=ScorePrompt())
    last = stepper.submit(PROMPT, reading=PoolPrompt(kind="last"), max_tokens=0)
    mean = stepper.submit(PROMPT, reading=PoolPrompt(kind="mean"), max_tokens=0)
    stepper.run()
    assert (late.sequence.num_cached, late.reads) == (12, ALL[12:])
    assert (whole.sequence.num_cached, whole.reads) == (0, ALL)
    assert (last.sequence.num_cached, last.reads) == (16, [19])
    assert (mean.sequence.num_cached, mean.reads) == (0, list(range(20)))


def test_of_no_token_to_generate_the_prompt_alone_is_computed_and_its_blocks_are_back() -> None:
    for depth in (1, 2):
        stepper = Stepper(token_budget=8, depth=depth)
        run = stepper.submit(PROMPT, reading=ScorePrompt(), max_tokens=0)
        stepper.run()
        assert run.verdicts == [Complete("length")]
        assert (run.reads, run.outputs) == (ALL, [])
        assert stepper.all_back
        assert not any(chunk.sampling for batch in stepper.runner.batches for chunk in batch)


def test_a_prompt_as_long_as_the_context_may_be_read_and_no_longer_one() -> None:
    stepper = Stepper(max_context_tokens=20)
    fits = stepper.submit(PROMPT, reading=ScorePrompt(), max_tokens=0)
    longer = stepper.submit([*PROMPT, 1], reading=ScorePrompt(), max_tokens=0)
    stepper.run()
    assert fits.verdicts == [Complete("length")]
    assert isinstance(longer.verdicts[0], Fail) and longer.verdicts[0].code == "too_long"


def test_whoever_was_preempted_reads_only_what_it_had_not() -> None:
    stepper = Stepper(num_blocks=10, token_budget=5)
    older = stepper.submit([60, 61, 62], max_tokens=12)
    stepper.step()
    run = stepper.submit(list(range(30, 62)), reading=ScorePrompt(), max_tokens=0)
    stepper.run()
    assert stepper.scheduler.num_preempted
    assert run.reads == list(range(31)) and run.verdicts == [Complete("length")]
    assert older.outputs == older.expected(12)


def test_rows_of_a_step_that_failed_are_read_when_it_is_computed_again() -> None:
    stepper = Stepper(token_budget=8, depth=2)
    run = stepper.submit(PROMPT, reading=ScorePrompt())
    stepper.launch()
    stepper.launch()
    stepper.fail()
    while stepper.suspects:
        stepper.repeat(fails=False)
    stepper.run()
    assert run.reads == ALL and run.outputs == run.expected(4)


def test_a_prefill_that_is_handed_over_is_scored_with_what_was_given_before() -> None:
    stepper = Stepper()
    late = ScorePrompt(first=5)
    run = stepper.submit(PROMPT, mode=Mode.HANDOVER, max_tokens=8, num_given=3, reading=late)
    stepper.run()
    assert run.reads == ALL[4:] and run.verdicts == [HandOver()]
