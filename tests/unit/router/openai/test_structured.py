"""The form of an answer, by all the names that clients have for it, and what is refused of it."""

import json
from typing import Any

import httpx
import pytest
from support.api import Bench, chat, complete, error_of
from support.json_schemas import accepts

pytestmark = pytest.mark.anyio
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NOT_KEPT = {"type": "object", "properties": {"a": {"uniqueItems": True}}}
OPEN = OBJECT | {"additionalProperties": True}
ONE, OTHER, MORE = '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 1}'


def named(schema: object, **more: Any) -> dict[str, Any]:
    inner = {"name": "answer", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


FORMS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, OTHER, "[]"),
    ({"response_format": {"type": "json_object", "schema": OBJECT}}, ONE, OTHER),
    (named(OBJECT), ONE, OTHER),
    (named(OBJECT, strict=True, description="An answer."), ONE, MORE),
    (named(OPEN, strict=True), MORE, OTHER),
    (named(OBJECT, strict=False), MORE, OTHER),
    (named({}), OTHER, "1"),
    (named(None), OTHER, "1"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, OTHER, "1"),
    ({"structured_outputs": {"json": OBJECT}}, ONE, OTHER),
    ({"structured_outputs": {"json": json.dumps(OBJECT), "regex": None}}, ONE, OTHER),
    ({"structured_outputs": {"json_object": True}}, OTHER, "[]"),
    ({"structured_outputs": {"json": OBJECT, "disable_any_whitespace": True}}, '{"a":1}', ONE),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": "[ ]?"}}, ONE, '{"a":  1}'),
    ({"structured_outputs": {"regex": "[ab]+"}}, "abba", "c"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "noyes"),
    ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "b", "ab"),
    ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, "b", "ab"),
    ({"guided_json": OBJECT, "guided_decoding_backend": "xgrammar"}, ONE, OTHER),
    ({"guided_json": {}, "guided_whitespace_pattern": r"\s?"}, ONE, '{"a":  1}'),
    ({"guided_regex": "[ab]+"}, "abba", "c"),
    ({"guided_choice": ["yes", "no"]}, "no", "noyes"),
    ({"guided_grammar": 'root ::= "a"'}, "a", "b"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, ONE, "1"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": None}}}, ONE, "1"),
    ({"json_schema": json.dumps(OBJECT)}, ONE, OTHER),
    ({"json_schema": OBJECT}, ONE, OTHER),
    ({"regex": "[ab]+"}, "abba", "c"),
    ({"ebnf": 'root ::= "a"'}, "a", "b"),
    ({"grammar": 'root ::= "a"'}, "a", "b"),
]


@pytest.mark.parametrize("ask", [chat, complete], ids=["chat", "completions"])
@pytest.mark.parametrize(("fields", "yes", "no"), FORMS, ids=lambda one: json.dumps(one)[:80])
async def test_a_form_reaches_the_workers_as_a_grammar(
    bench: Bench, client: httpx.AsyncClient, ask: Any, fields: dict[str, Any], yes: str, no: str
) -> None:
    assert (await ask(client, **fields)).status_code == 200
    grammar = bench.dispatcher.requests[0].sampling.grammar
    assert grammar is not None
    assert (accepts(grammar.text, yes), accepts(grammar.text, no)) == (True, False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"response_format": None, "structured_outputs": None, "guided_json": None},
        {"structured_outputs": {"json": None, "json_object": False, "disable_fallback": True}},
        {"guided_decoding_backend": "auto"},
        {"structural_tag": None, "bad_words": []},
    ],
)
async def test_who_asks_for_no_form_gets_any_text(
    bench: Bench, client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    assert (await chat(client, **fields)).status_code == 200
    assert bench.dispatcher.requests[0].sampling.grammar is None


UNSUPPORTED, UNKNOWN = "unsupported_parameter", "unknown_parameter"
AT = "response_format.json_schema"
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    (named(NOT_KEPT), f"{AT}.schema.properties.a.uniqueItems", UNSUPPORTED),
    (named({"items": {"type": "text"}}), f"{AT}.schema.items.type", None),
    (named(7), f"{AT}.schema", None),
    (named({"a": "x" * 70_000}), "response_format", None),
    ({"response_format": {"type": "json_schema"}}, AT, None),
    ({"response_format": {"type": "json_schema", "schema": {}, "json_schema": {}}},
     "response_format.schema", None),
    ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, AT, None),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type", UNSUPPORTED),
    ({"response_format": {"type": "json_object", "kind": 1}}, "response_format.kind", UNKNOWN),
    ({"response_format": "json_object"}, "response_format", None),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag",
     UNSUPPORTED),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", None),
    ({"structured_outputs": {"json": NOT_KEPT}},
     "structured_outputs.json.properties.a.uniqueItems", UNSUPPORTED),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", None),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", None),
    ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice[1]", None),
    ({"structured_outputs": {"grammar": "nothing"}}, "structured_outputs.grammar", None),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": "a"}},
     "structured_outputs.whitespace_pattern", None),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
     "structured_outputs.whitespace_pattern", None),
    ({"structured_outputs": {"json": {}, "whitespace_pattern": " "},
      "guided_whitespace_pattern": " "}, "guided_whitespace_pattern", None),
    ({"guided_json": NOT_KEPT}, "guided_json.properties.a.uniqueItems", UNSUPPORTED),
    ({"json_schema": '{"not": {}}'}, "json_schema.not", UNSUPPORTED),
    ({"ebnf": "root ::= x"}, "ebnf", None),
    ({"structural_tag": "{}"}, "structural_tag", UNSUPPORTED),
    ({"bad_words": ["x"]}, "bad_words", UNSUPPORTED),
    ({**named(OBJECT), "guided_regex": "a"}, "guided_regex", None),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", None),
    ({"allowed_token_ids": []}, "allowed_token_ids", None),
    ({"allowed_token_ids": [1, 10**6]}, "allowed_token_ids[1]", None),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
async def test_what_cannot_be_kept_is_refused_by_its_path(
    bench: Bench,
    client: httpx.AsyncClient,
    fields: dict[str, Any],
    param: str,
    code: str | None,
) -> None:
    response = await chat(client, **fields)
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith(param)
    assert bench.dispatcher.requests == []


async def test_allowed_tokens_reach_the_workers(bench: Bench, client: httpx.AsyncClient) -> None:
    assert (await chat(client, allowed_token_ids=[7, 9, *[7] * 5000])).status_code == 200
    assert bench.dispatcher.requests[0].sampling.allowed_token_ids == (7, 9)
