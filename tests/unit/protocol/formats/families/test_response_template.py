"""Formats that a checkpoint describes itself, read as transformers reads them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from support.outputs import read_tokens, tokenizer_with, weather
from transformers.utils.chat_parsing import parse_response

from protocol.formats.choose import choose_formats
from protocol.formats.families.response_template import calls_of, thoughts_of

FUNCTION = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
LISTED = {"type": "function", "function": {"name": "{tool}", "arguments": "{with}"}}
TAGS = {"open": "<calls>", "close": "</calls>"}
THOUGHTS = {"open": "<mull>", "close": "</mull>"}
CASES: list[tuple[Mapping[str, Any], str]] = [
    (
        {**TAGS, "content": "json", "transform_each": True, "transform": LISTED},
        '<calls>[{"tool": "get_weather", "with": {"city": "Paris"}}]</calls>',
    ),
    (
        {**TAGS, "content": "json", "repeats": True, "transform": {"function": "{content}"}},
        '<calls>{"name": "get_weather", "arguments": {"city": "Paris"}}</calls>',
    ),
    (
        {
            "open_pattern": r"<calls>\s*call:(?P<name>\w+)",
            "close": "</calls>",
            "content": "json",
            "repeats": True,
            "transform": FUNCTION,
        },
        '<calls>call:get_weather{"city": "Paris"}</calls>',
    ),
    (
        {
            "open_pattern": r"<calls>(?P<name>\w+)\|\s*",
            "close": "</calls>",
            "content": "json",
            "repeats": True,
            "transform": FUNCTION,
        },
        '<calls>get_weather|{"city": "Paris"}</calls>',
    ),
    (
        {**TAGS, "content": "python-call-list", "transform_each": True, "transform": FUNCTION},
        '<calls>[get_weather(city="Paris")]</calls>',
    ),
]


def _template(calls: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"thinking": THOUGHTS, "tool_calls": calls, "content": {"close": "<end>"}}
    return {"start_anchor": "<turn>", "fields": fields}


@pytest.mark.parametrize(("calls", "text"), CASES, ids=[text for _, text in CASES])
@pytest.mark.parametrize("tokens", [(), ("<calls>", "</calls>", "<mull>", "</mull>")])
def test_calls_and_thoughts_are_as_transformers_has_them(
    calls: Mapping[str, Any], text: str, tokens: tuple[str, ...]
) -> None:
    template = _template(calls)
    tokenizer = tokenizer_with(special=("<turn>",), added=tokens, response_template=template)
    formats = choose_formats(tokenizer)
    output = formats.open(tools=[weather()], prompt_ids=tokenizer.encode("<turn>"))
    text = f"<mull>Hm.</mull>{text}"

    said = read_tokens(tokenizer, output, text)

    if calls["content"] != "python-call-list":
        theirs = parse_response(text, template, prefix="<turn>")
        listed = theirs["tool_calls"]
        [call] = listed if isinstance(listed, list) else [listed]
        assert theirs["thinking"] == said.reasoning
        assert call["function"]["name"] == said.calls[0].name
        assert call["function"]["arguments"] == json.loads(said.calls[0].arguments)
    assert (formats.tool_format, formats.reasoning_format) == ("response_template",) * 2
    assert said.named == [("get_weather", '{"city": "Paris"}', True)]
    assert (said.reasoning, said.content) == ("Hm.", "")


@pytest.mark.parametrize(
    "calls",
    [
        {**TAGS, "content": "kv-lines"},
        {**TAGS, "content": "json", "content_args": {"unquoted_keys": True}},
        {"open": ["a", "b"], "close": "c", "content": "json"},
        {"open_pattern": "<a|b>(?P<name>x)", "close": "c", "content": "json"},
        {"open_pattern": "<a>", "close": "c", "content": "json"},
        {**TAGS, "content": "json", "transform": {"function": {"name": "{a.b}"}}},
        {"open": "<calls>", "content": "json"},
    ],
)
def test_what_is_not_read_is_refused_and_the_template_not_used(calls: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="response_template: "):
        calls_of(_template(calls))
    tokenizer = tokenizer_with(response_template=_template(calls))
    assert choose_formats(tokenizer).tool_format == "none"


@pytest.mark.parametrize("template", [{}, {"fields": 1}, {"fields": {"thinking": 1}}])
def test_a_template_that_is_none_is_refused(template: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="no fields"):
        thoughts_of(template)
    assert choose_formats(tokenizer_with(response_template=template)).reasoning_format == "none"


def test_a_format_known_here_is_preferred() -> None:
    calls = {"open": "<tool_call>", "close": "</tool_call>", "content": "json"}
    tokenizer = tokenizer_with(response_template=_template(calls))
    assert choose_formats(tokenizer).tool_format == "hermes"
    chosen = choose_formats(tokenizer, tools="response_template")
    assert chosen.tool_format == "response_template"
