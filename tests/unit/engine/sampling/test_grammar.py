"""What compiles grammars and fills their masks, without an engine."""

from collections.abc import Sequence

import msgspec
import pytest
from support.constrained import held_to, lark, tiny_tokenizer, words_tokenizer
from support.eventually import eventually
from support.fake_runner import allowed_ids
from support.forwards import chunk

from engine.constraint import Constraint
from engine.sampling import grammar as module
from engine.sampling.grammar import AllowedTokens, Grammars
from protocol.messages import Sampling
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.tokenizer import Tokenizer


def compiled(
    grammars: Grammars, rule: Sampling, outputs: Sequence[int] = ()
) -> Constraint | ValueError:
    told: list[Constraint | ValueError] = []
    grammars.compile(rule, outputs, tell=told.append)
    eventually(lambda: told, what="the grammar is compiled")
    return told[0]


def constraint_of(tokenizer: Tokenizer, rule: Sampling) -> tuple[Grammars, Constraint]:
    grammars = Grammars(tokenizer, num_threads=1)
    constraint = compiled(grammars, rule)
    assert not isinstance(constraint, ValueError)
    return grammars, constraint


def next_ids(grammars: Grammars, constraint: Constraint) -> list[int]:
    row = chunk([1], table=[0], sampling=Sampling(seed=1, max_tokens=1))
    row = msgspec.structs.replace(row, allowed=constraint.allowed)
    grammars.begin_filling([row])
    assert row.allowed is not None
    return allowed_ids(row.allowed.words())


def test_what_the_vocabulary_cannot_write_leaves_no_token_and_says_so() -> None:
    grammars, constraint = constraint_of(
        words_tokenizer("a", "b", "<eos>", eos=(2,)), held_to(lark('start: "ac"'))
    )
    assert next_ids(grammars, constraint) == [0]
    constraint.accept(0)
    assert constraint.error == ""
    assert next_ids(grammars, constraint) == []
    assert "no token goes on" in constraint.error and not constraint.has_ended


def test_a_mask_holds_for_the_tokens_accepted_so_far_however_often_it_is_filled() -> None:
    tokenizer = words_tokenizer("a", "b", "c", "<eos>", eos=(3,))
    grammars, constraint = constraint_of(tokenizer, held_to(lark('start: "a" ("b" | "c") "a"')))
    for token_id, following in ((None, [0]), (0, [1, 2]), (2, [0])):
        if token_id is not None:
            constraint.accept(token_id)
        assert [next_ids(grammars, constraint) for _ in range(2)] == [following] * 2


def test_before_it_begins_only_what_the_request_allows_holds() -> None:
    tokenizer = words_tokenizer("a", "b", "c", "<eos>", eos=(3,))
    grammar = lark('start: "a"', begins_after=((1, 2),))
    grammars, constraint = constraint_of(tokenizer, held_to(grammar, allowed_token_ids=(0, 1, 2)))
    for token_id in (1, 1):
        constraint.accept(token_id)
        assert next_ids(grammars, constraint) == [0, 1, 2]
    constraint.accept(2)
    assert next_ids(grammars, constraint) == [0]
    free = constraint_of(tokenizer, held_to(grammar))[1]
    assert free.allowed is None


def test_a_grammar_is_compiled_once_and_the_oldest_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 2)
    texts: list[str] = []
    compile_one = Matcher.compile

    def noted(text: str, vocabulary: GrammarTokenizer) -> Matcher:
        texts.append(text)
        return compile_one(text, vocabulary)

    monkeypatch.setattr(Matcher, "compile", noted)
    grammars = Grammars(tiny_tokenizer(), num_threads=1)
    for letter in "aabacabc":
        compiled(grammars, held_to(lark(f'start: "{letter}"')))
    assert [text[-2] for text in texts] == ["a", "b", "c", "b", "c"]


def test_ids_allowed_are_words_of_bits() -> None:
    assert allowed_ids(AllowedTokens.of((64, 3, 3, 31, 0)).words()) == [0, 3, 31, 64]
