"""What a grammar cannot hold an answer to is refused by its path; what costs too much, at once."""

import json
from typing import Any

import pytest
from jsonschema import (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)

from protocol.text.structured.grammars import JsonStyle, json_grammar
from protocol.text.structured.keywords import KINDS, UNSUPPORTED
from protocol.text.structured.limits import MAX_STACK, SchemaError, UnsupportedKeyword
from protocol.text.structured.schema import normalised_schema

DRAFTS = (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
)
ASKS = {
    "uniqueItems": True,
    "minContains": 1,
    "maxContains": 1,
    "not": {"type": "null"},
    "then": {"minimum": 1},
    "else": {"minimum": 1},
    "dependentRequired": {"a": ["b"]},
    "dependencies": {"a": ["b"]},
    "propertyNames": {"maxLength": 3},
    "divisibleBy": 2,
    "disallow": "string",
    "$dynamicRef": "#a",
    "$recursiveRef": "#",
}
"""A value that asks for something; of others, a schema."""


def refusal(schema: object) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        json_grammar(schema)
    return caught.value


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED.keys() - {"additionalItems"}))
def test_a_keyword_that_cannot_be_kept_is_named_by_its_path(keyword: str) -> None:
    asking = {keyword: ASKS.get(keyword, {"type": "integer"})}
    if keyword == "unevaluatedProperties":
        asking["$ref"] = "#/$defs/a"  # else it is additionalProperties
    schema = {
        "$defs": {"a": {"type": "object"}},
        "properties": {"list": {"items": {"anyOf": [{"type": "null"}, asking]}}},
    }
    error = refusal(schema)
    assert isinstance(error, UnsupportedKeyword)
    assert error.path == f"properties.list.items.anyOf[1].{keyword}"


@pytest.mark.parametrize("draft", DRAFTS)
def test_no_keyword_of_any_draft_is_ignored(draft: Any) -> None:
    """By the table of who checks documents of that draft."""
    assert set(draft.VALIDATORS) - {*KINDS, *UNSUPPORTED} == {"$ref"}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_a_keyword_that_asks_for_nothing_is_accepted(keyword: str) -> None:
    for harmless in UNSUPPORTED[keyword]:
        assert normalised_schema({"type": "string", keyword: harmless}) in (
            {"type": "string"},
            {"type": "string", "additionalProperties": harmless},
            {"type": "string", "additionalProperties": {}},
        )


WRONG: list[tuple[object, str]] = [
    (False, ""),
    (7, ""),
    ([{}], ""),
    ({"type": "text"}, "type"),
    ({"type": []}, "type"),
    ({"enum": []}, "enum"),
    ({"enum": {"a": 1}}, "enum"),
    ({"anyOf": {}}, "anyOf"),
    ({"properties": []}, "properties"),
    ({"properties": {"a": 1}}, "properties.a"),
    ({"required": "a"}, "required"),
    ({"minLength": -1}, "minLength"),
    ({"maxLength": 1.5}, "maxLength"),
    ({"minimum": "1"}, "minimum"),
    ({"multipleOf": 0}, "multipleOf"),
    ({"pattern": 1}, "pattern"),
    ({"format": "isbn"}, "format"),
    ({"$ref": 1}, "$ref"),
    ({"$ref": "#/$defs/none"}, "$ref"),
    ({"$ref": "https://example.org/schema"}, "$ref"),
    ({"$ref": "other.json#/a"}, "$ref"),
    ({"$ref": "#nowhere"}, "$ref"),
    ({"properties": {"a": {"$id": "b"}, "c": {"$ref": "#/properties/a"}}}, "properties.c.$ref"),
    ({"items": {"type": "string", "pattern": "(?=a)b"}}, "items"),
    ({"items": {"type": "string", "pattern": "("}}, "items"),
    ({"minItems": 2, "maxItems": 1, "type": "array"}, ""),
    ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "properties.a"),
    ({"oneOf": [{"enum": [{"a": None}]}, {"type": "object"}]}, "oneOf"),
    ({"items": {"oneOf": [{"const": [1]}, {"items": {"type": "integer"}}]}}, "items.oneOf"),
    ({"items": {"patternProperties": {"a": {}, "b": {}}}}, "items"),
    ({"type": "object", "properties": {"a": {}, "b": False}, "required": ["b"]}, ""),
    ({"allOf": [False]}, ""),
    ({"$defs": {"a": {"allOf": [{"type": "null"}, {"const": 1}]}}, "$ref": "#/$defs/a"}, ""),
]


@pytest.mark.parametrize(("schema", "path"), WRONG, ids=lambda one: json.dumps(one)[:60])
def test_a_mistake_is_found_where_it_stands(schema: object, path: str) -> None:
    assert refusal(schema).path == path


ODD: list[Any] = [
    None,
    True,
    False,
    [True],
    [False],
    0,
    -1,
    1.5,
    1e300,
    "",
    "x",
    "^a",
    [],
    [None],
    ["a"],
    [1],
    [[]],
    [{}],
]
ODD += [{}, {"a": 1}, {"a": {}}, {"a": []}, {"enum": ["a"]}, {"pattern": "("}, {"$ref": "#"}]
OTHERS = ("$ref", "$defs", "$id", "$anchor", "nullable", "discriminator", "$schema", "x-guidance")


@pytest.mark.parametrize("keyword", [*KINDS, *UNSUPPORTED, *OTHERS])
def test_whatever_stands_at_a_keyword_is_kept_or_refused(keyword: str) -> None:
    beside = {"oneOf": [{"type": "null"}], "discriminator": {"propertyName": "a"}, "items": [{}]}
    for odd in ODD:
        for schema in ({keyword: odd}, {**beside, keyword: odd}, {"propertyNames": {keyword: odd}}):
            try:
                assert json_grammar(schema, JsonStyle(closed=True)).startswith("start:")
            except SchemaError as error:
                assert error.rule


def chain(num: int, link: Any, last: object) -> dict[str, Any]:
    """`num` definitions, each of which refers to the next by `link(reference, number)`."""
    defs = {f"d{n}": link({"$ref": f"#/$defs/d{n + 1}"}, n) for n in range(num)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{num}": last}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


COSTLY = {
    "objects in objects": nested(150),
    "references after each other": chain(
        MAX_STACK, lambda ref, _: {"anyOf": [ref, {"type": "null"}]}, {}
    ),
    "twice as much in each": chain(
        30,
        lambda ref, n: {"properties": {k: {"allOf": [ref, {"title": k}, {}]} for k in "ab"}},
        {"type": "object"},
    ),
    "twice as much beside a union": chain(
        30,
        lambda ref, n: {"type": "object", "properties": {"a": ref, "b": ref}, "anyOf": [ref, ref]},
        {"type": "object"},
    ),
    "properties that may all be missing": {
        "properties": {f"p{n}": {"type": "null"} for n in range(501)}
    },
    "objects to choose among": {"items": {"enum": [{"a": n} for n in range(2001)]}},
    "alternatives of many properties": {
        "$defs": {"a": {"properties": {f"p{n}": {} for n in range(40)}}},
        "anyOf": [{"$ref": "#/$defs/a"}] * 20,
    },
    "a machine of many states": {"multipleOf": 999_983},
    "a machine of many states, together": {
        "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}],
        "type": "integer",
    },
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_cost_too_much_is_refused_before_it_is_compiled(name: str) -> None:
    with pytest.raises(SchemaError):
        normalised_schema(COSTLY[name])


def test_what_is_just_within_the_limits_compiles() -> None:
    """On the stack of a thread: the compiler would end the process."""
    links = (MAX_STACK - 10) // 3
    assert json_grammar(chain(MAX_STACK - 10, lambda ref, _: ref, {}))
    assert json_grammar(
        chain(
            links,
            lambda ref, _: {"type": "object", "properties": {"a": {"anyOf": [ref, {}]}}},
            {},
        )
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {
            "$defs": {
                "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]},
                "b": {"type": "array", "prefixItems": [{"$ref": "#/$defs/a"}], "minItems": 1},
            },
            "$ref": "#/$defs/a",
        },
    ],
)
def test_a_schema_that_no_finite_document_fits_is_refused(schema: dict[str, Any]) -> None:
    assert refusal(schema).rule == "no document of finite size fits it"
