"""The door to llguidance: what it refuses, what a mask says, and whose tokens are text."""

import json

import numpy as np
import pytest
from support.constrained import tiny_tokenizer, tiny_vocabulary, words_tokenizer

from protocol.text.grammar import GrammarTokenizer, MaskFiller, Matcher, check_grammar

TINY, VOCABULARY = tiny_tokenizer(), tiny_vocabulary()
END, START = 2, 1
"""`<|im_end|>`, which ends a text, and `<|im_start|>`."""


def allowed(matcher: Matcher, vocabulary: GrammarTokenizer = VOCABULARY) -> set[int]:
    (words,) = vocabulary.new_words(1)
    matcher.fill(words)
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def after(text: str, lark: str) -> Matcher:
    matcher = Matcher.compile(lark, VOCABULARY)
    for token_id in TINY.encode(text, add_special_tokens=False):
        assert matcher.accept(token_id)
    return matcher


def texts(ids: set[int]) -> set[str]:
    return {TINY.token_text(token_id) for token_id in ids}


def vocabulary_of(*tokens: str, eos: tuple[int, ...] = ()) -> GrammarTokenizer:
    return GrammarTokenizer(words_tokenizer(*tokens, eos=eos))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no start rule"),
        ("start: foo", "unknown name"),
        ('start: %json {"uniqueItems": true}', "Unimplemented keys"),
        ("{", "no JSON"),
        ('{"grammars": []}', "must be one"),
        ('{"grammars": [{"lark_grammar": "start: \\"a\\"", "max_tokens": 3}]}', "must be one"),
        ('%llguidance {"no_forcing": ]}\nstart: "a"', "%llguidance"),
        ("start: <|no_such|>", "unknown special token"),
        ("start: <[99999]>", "range end too large"),
    ],
)
def test_what_is_no_grammar_or_cannot_be_done_is_refused_with_the_reason(
    text: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        check_grammar(text, VOCABULARY)
    with pytest.raises(ValueError, match=why):
        Matcher.compile(text, VOCABULARY)


@pytest.mark.parametrize(
    "text",
    [
        'start: "ab"',
        '%llguidance {"no_forcing": false}\nstart: "ab"',
        json.dumps({"grammars": [{"lark_grammar": 'start: "ab"'}]}),
        json.dumps({"grammars": [{"json_schema": {"const": "ab"}}]}),
    ],
)
def test_a_grammar_is_lark_or_json_of_one(text: str) -> None:
    check_grammar(text)
    assert Matcher.compile(text, VOCABULARY).error == ""


def test_tokens_of_a_forced_text_may_be_cut_anywhere() -> None:
    """Else the mask would allow one tokenisation, and ask the tokeniser for it."""
    vocabulary = vocabulary_of("a", "b", "ab", "c", eos=(3,))
    assert allowed(Matcher.compile('start: "ab"', vocabulary), vocabulary) == {0, 2}


def test_a_text_that_can_go_no_further_has_ended_and_one_that_can_has_not() -> None:
    closed = after("a", 'start: "a"')
    assert closed.has_ended and closed.error == ""
    open_ = after("a", "start: /a+/")
    assert not open_.has_ended
    assert END in allowed(open_)
    assert open_.accept(END) and open_.has_ended


def test_a_wrong_token_is_an_error_for_good() -> None:
    matcher = after("a", 'start: "abc"')
    assert not matcher.accept(END) and not matcher.accept(TINY.encode("b")[0])
    assert "doesn't satisfy the grammar" in matcher.error and "\n" not in matcher.error
    assert not matcher.has_ended


def test_a_copy_goes_its_own_way() -> None:
    matcher = after("a", 'start: "a" /b|c/')
    copy = matcher.copy()
    assert copy.accept(TINY.encode("b")[0]) and copy.has_ended
    assert texts(allowed(matcher)) == {"b", "c"}


def test_added_tokens_are_named_and_never_text() -> None:
    inside = after('{"a":"', 'start: %json {"type": "object"}')
    assert not allowed(inside) & TINY.added_token_ids
    for name in ("<|im_start|>", f"<[{START}]>"):
        matcher = after("a", f'start: "a" {name} "b"')
        assert allowed(matcher) == {START}
        assert matcher.accept(START) and texts(allowed(matcher)) == {"b"}
    spelt = Matcher.compile('start: "<|im_start|>"', VOCABULARY)
    assert allowed(spelt) and START not in allowed(spelt)


def test_what_the_vocabulary_cannot_write_is_an_error_and_not_an_end() -> None:
    vocabulary = vocabulary_of("a", "b", "<eos>", eos=(2,))
    matcher = Matcher.compile('start: "ac"', vocabulary)
    assert matcher.accept(0)
    allowed(matcher, vocabulary)
    assert matcher.error and not matcher.has_ended


def test_a_vocabulary_without_an_end_of_text_ends_texts_that_are_whole() -> None:
    vocabulary = vocabulary_of("a", "b")
    matcher = Matcher.compile('start: "ab"', vocabulary)
    assert allowed(matcher, vocabulary) == {0}
    assert matcher.accept(0) and matcher.accept(1) and matcher.has_ended


def test_masks_of_many_texts_are_those_of_each_and_a_broken_one_harms_none() -> None:
    matchers = [after("a", f'start: "a" "{"b" * n}"') for n in (1, 2, 3)]
    broken = after("a", 'start: "abc"')
    broken.accept(END)
    masks_RW = VOCABULARY.new_words(4)
    MaskFiller(2).fill([*matchers[:2], broken, matchers[2]], masks_RW)
    for matcher, row in zip(matchers, (0, 1, 3), strict=True):
        (alone,) = VOCABULARY.new_words(1)
        matcher.fill(alone)
        assert (masks_RW[row] == alone).all()
    assert broken.error
