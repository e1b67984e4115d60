"""JSON Schemas as grammars: what fits and what does not, by a validator of another make too."""

import json
from typing import Any

import pytest
from support.json_schemas import CASES, Case, Walker, accepts, told

from protocol.text.structured.grammars import JsonStyle, json_grammar

NAMES = [case.name for case in CASES]
MAX_WALKS = 400
"""Of which `NUM_STOPPED` must have come to their end."""
NUM_STOPPED = 20


def test_there_are_forty_schemas_and_more() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_documents_that_fit_are_texts_of_the_grammar_and_no_others(case: Case) -> None:
    grammar = json_grammar(case.schema)
    for document in case.valid:
        assert case.is_valid(document), document
        assert [text for text in told(document) if not accepts(grammar, text)] == []
    for document in case.invalid:
        assert not case.is_valid(document), document
        assert [text for text in told(document) if accepts(grammar, text)] == []


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_whatever_the_grammar_lets_through_fits(case: Case) -> None:
    walker = Walker(json_grammar(case.schema, JsonStyle(closed=True)))
    stopped = walked(case, walker, num=NUM_STOPPED)
    for text in stopped:
        assert case.is_valid(json.loads(text)), text


def walked(case: Case, walker: Walker, *, num: int) -> list[str]:
    texts: list[str] = []
    for seed in range(num * MAX_WALKS // NUM_STOPPED):
        if (walk := walker.walk(seed)).stopped:
            texts.append(walk.text)
        if len(texts) == num:
            return texts
    raise AssertionError(f"only {len(texts)} walks of {case.name} came to an end")


@pytest.mark.parametrize(
    "text",
    [
        '{"a":  1}',
        '{"a":\n' + " " * 25 + "1}",
        '{"a":\n\n1}',
        '{"a":1}\n',
        ' {"a":1}',
    ],
)
def test_white_space_is_bounded(text: str) -> None:
    assert isinstance(json.loads(text), dict)
    assert not accepts(json_grammar({"type": "object"}), text)


@pytest.mark.parametrize(
    ("space", "yes", "no"),
    [
        (None, '{"a":1,"b":2}', '{"a": 1}'),
        ("[ ]?", '{"a": 1, "b": 2}', '{"a":  1}'),
        (r"[\n\t]{0,2}", '{\n\t"a":1\n}', '{ "a":1}'),
    ],
)
def test_white_space_is_as_it_was_asked_for(space: str | None, yes: str, no: str) -> None:
    grammar = json_grammar({}, JsonStyle(whitespace=space))
    assert (accepts(grammar, yes), accepts(grammar, no)) == (True, False)


@pytest.mark.parametrize(
    "schema", [{}, True, {"title": "Any"}, {"allOf": [True]}, {"uniqueItems": False}], ids=str
)
def test_a_schema_that_says_nothing_means_an_object(schema: Any) -> None:
    grammar = json_grammar(schema)
    assert accepts(grammar, '{"a":[1]}')
    assert not any(accepts(grammar, text) for text in ("1", '"a"', "[]", "null"))


def test_objects_can_be_closed_where_their_schema_leaves_them_open() -> None:
    inner: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"a": inner, "map": {"type": "object"}}}
    closed = json_grammar(schema, JsonStyle(closed=True))
    for text, is_open in [('{"a":{"b":1,"c":2}}', True), ('{"map":{"any":1}}', False)]:
        assert accepts(json_grammar(schema), text)
        assert accepts(closed, text) is not is_open
