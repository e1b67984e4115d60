"""Sequences held to a grammar or to some tokens, in an engine on a fake runner."""

import json
from collections.abc import Iterator

import pytest
from support.constrained import (
    PROMPT,
    SCHEMA,
    ConstrainedEngine,
    accepts,
    constrained_engine,
    held_to,
    json_grammar,
    lark,
)
from support.fake_runner import FakeRunner, continuation
from support.observed import RecordingObserver

from engine.batch import SequenceId
from engine.commands import Submission
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.sequence import Abandon, Complete, Fail, HandOver, Mode
from protocol.messages import Grammar

STOP, LENGTH = Complete("stop"), Complete("length")


@pytest.fixture(params=[1, 2])
def run(request: pytest.FixtureRequest) -> Iterator[ConstrainedEngine]:
    with constrained_engine(depth=request.param) as run:
        yield run


def ids(run: ConstrainedEngine, text: str) -> list[int]:
    return run.tokenizer.encode(text, add_special_tokens=False)


def test_an_output_is_a_text_of_its_grammar_and_ends_with_it(run: ConstrainedEngine) -> None:
    for seed in range(20):
        run.submit(f"s{seed}", held_to(json_grammar(SCHEMA), seed=seed))
    for seed in range(20):
        assert run.ending(f"s{seed}") == STOP
        assert [*json.loads(run.text(f"s{seed}"))] == SCHEMA["required"]


def test_an_output_cut_by_length_begins_a_text_of_its_grammar(run: ConstrainedEngine) -> None:
    run.submit("cut", held_to(json_grammar(SCHEMA), max_tokens=9))
    assert run.ending("cut") == LENGTH
    assert accepts(json_grammar(SCHEMA), run.tokens("cut"))


def test_a_text_that_can_go_no_further_ends_whatever_the_request_says(
    run: ConstrainedEngine,
) -> None:
    run.submit("ab", held_to(lark('start: "ab"'), min_tokens=50, ignore_eos=True))
    assert (run.ending("ab"), run.text("ab")) == (STOP, "ab")


def test_an_end_of_text_ends_a_text_that_may_end_though_ends_are_ignored(
    run: ConstrainedEngine,
) -> None:
    grammar, (eos,) = lark("start: /a*/"), run.tokenizer.eos_token_ids
    run.submit("as", held_to(grammar, ignore_eos=True, allowed_token_ids=(eos,)))
    assert (run.ending("as"), run.tokens("as")) == (STOP, [eos])


def test_a_grammar_begins_after_the_run_of_tokens_that_it_names(run: ConstrainedEngine) -> None:
    undisturbed = continuation(PROMPT, seed=1, num_tokens=6)
    grammar = lark('start: "ab"', begins_after=((7, 7), tuple(undisturbed[2:4])))
    run.submit("late", held_to(grammar))
    assert run.ending("late") == STOP
    assert run.tokens("late")[:4] == undisturbed[:4]
    assert run.tokens("late")[4:] == ids(run, "ab")


def test_what_was_generated_before_is_replayed(run: ConstrainedEngine) -> None:
    """Also what a grammar begins after, and an end that only its ending was missing of."""
    grammar = lark('start: "abc"', begins_after=((5,),))
    run.submit("half", held_to(grammar), generated=[9, 5, *ids(run, "a")])
    assert run.ending("half") == STOP
    assert run.tokens("half") == ids(run, "bc")
    run.submit("whole", held_to(grammar), generated=[9, 5, *ids(run, "abc")])
    assert (run.ending("whole"), run.tokens("whole")) == (STOP, [])


def test_the_token_that_a_prefill_hands_over_is_held_to_the_grammar_too(
    run: ConstrainedEngine,
) -> None:
    run.submit("handed", held_to(json_grammar(SCHEMA)), mode=Mode.HANDOVER)
    assert isinstance(run.ending("handed"), HandOver)
    assert run.tokens("handed") == ids(run, "{")
    run.engine.release(SequenceId("handed"))


def test_only_allowed_tokens_are_sampled_until_the_length_is_reached(
    run: ConstrainedEngine,
) -> None:
    run.submit("few", held_to(None, allowed_token_ids=(70, 3, 900), max_tokens=40))
    assert run.ending("few") == LENGTH
    assert set(run.tokens("few")) == {70, 3, 900}


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (lark("start: foo"), "unknown name"),
        (lark('start: %json {"uniqueItems": true}'), "uniqueItems"),
        (lark('start: "a" <|no_such|>'), "unknown special token"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_fails_its_request_alone(
    run: ConstrainedEngine, grammar: Grammar, why: str
) -> None:
    run.submit("wrong", held_to(grammar))
    run.submit("beside", held_to(json_grammar(SCHEMA)))
    ending = run.ending("wrong")
    assert isinstance(ending, Fail) and (ending.code, ending.final) == ("grammar", True)
    assert why in ending.message
    assert run.ending("beside") == STOP


def test_a_row_with_no_token_allowed_fails_with_the_reason_and_its_neighbour_goes_on(
    run: ConstrainedEngine,
) -> None:
    run.submit("nothing", held_to(lark('start: "ab"'), allowed_token_ids=(3,)))
    run.submit("beside", held_to(json_grammar(SCHEMA)))
    ending = run.ending("nothing")
    assert isinstance(ending, Fail) and ending.code == "grammar"
    assert "allowed_token_ids" in ending.message
    assert run.ending("beside") == STOP


def test_tokens_that_the_grammar_does_not_have_fail_their_request(run: ConstrainedEngine) -> None:
    run.submit("wrong", held_to(lark('start: "ab"')), generated=ids(run, "b"))
    ending = run.ending("wrong")
    assert isinstance(ending, Fail) and (ending.code, ending.final) == ("grammar", True)


def test_a_request_is_aborted_while_its_grammar_is_compiled() -> None:
    with constrained_engine() as run:
        for number in range(30):
            run.submit(f"s{number}", held_to(lark(f'start: "{"a" * number}b"')))
            run.engine.abort(SequenceId(f"s{number}"))
        endings = [run.ending(f"s{number}") for number in range(30)]
    assert Abandon() in endings


def test_requests_whose_grammars_are_compiled_count_as_waiting() -> None:
    with constrained_engine(max_waiting=1) as run:
        for number in range(40):
            run.submit(f"s{number}", held_to(lark('start: "ab"')))
        endings = [run.ending(f"s{number}") for number in range(40)]
    assert {type(ending) for ending in endings} == {Complete, Fail}
    assert all(e.code == "overloaded" for e in endings if isinstance(e, Fail))


def test_an_engine_that_follows_no_grammar_says_so() -> None:
    deaf = Engine(
        runner=FakeRunner(num_blocks=8), compat="test", generations=[0] * 8, eos_token_ids=(),
        observer=RecordingObserver(),
        limits=EngineLimits(max_running=2, max_waiting=2, token_budget=8, max_context_tokens=32),
    )  # fmt: skip
    sampling = held_to(lark('start: "a"'))
    with pytest.raises(ValueError, match="grammar: this engine follows none"):
        deaf.submit(Submission(id=SequenceId("a"), prompt=PROMPT, sampling=sampling))
