"""Messages of content blocks become the turns that a template is shown."""

import json
from typing import Any

import msgspec
import pytest

from router.anthropic.content import read_messages
from router.anthropic.turns import turns_of
from router.api.errors import ApiError
from router.api.explain import explain

INPUT = {"city": "Rome", "at": None}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": INPUT}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def shown(*messages: Any, system: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    turns = turns_of(read_messages(json.dumps(messages).encode()), system)
    return [turn.as_shown(knows_developer=False) for turn in turns]


def test_texts_are_texts_and_the_system_prompt_comes_first() -> None:
    assert shown(user("hi"), assistant([text("Hello.")]), user([text("a"), text("b")])) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [text("a"), text("b")]},
    ]
    assert shown(user("hi"), system=("be kind",))[0] == {"role": "system", "content": "be kind"}
    assert shown(user("hi"), system=("a", "b"))[0]["content"] == [text("a"), text("b")]


def test_a_call_and_its_result() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    asked, called, told, more = shown(
        user("weather?"),
        assistant([thought, hidden, text("I look."), CALL]),
        user([RESULT, text("and now?")]),
    )
    assert asked == {"role": "user", "content": "weather?"}
    function = {"name": "weather", "arguments": INPUT}
    assert called == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
    }
    assert told == {
        "role": "tool",
        "content": "sunny",
        "name": "weather",
        "tool_call_id": "toolu_1",
    }
    assert more == {"role": "user", "content": "and now?"}


def test_a_call_without_text_has_no_content() -> None:
    assert "content" not in shown(assistant([CALL]))[0]


@pytest.mark.parametrize(
    ("content", "is_error", "said"),
    [
        (None, None, ""),
        ([], False, ""),
        ([text("a"), text("b")], False, [text("a"), text("b")]),
        ("no such city", True, "Error: no such city"),
        ("error 7", True, "error 7"),
        ([text("a"), text("b")], True, [text("Error: a"), text("b")]),
        (None, True, "Error: "),
        ([], True, "Error: "),
    ],
)
def test_a_result_says_what_it_says(content: Any, is_error: bool | None, said: Any) -> None:
    result = RESULT | {"content": content, "is_error": is_error}
    assert shown(assistant([CALL]), user([result]))[-1]["content"] == said


def test_messages_of_one_role_that_follow_each_other_are_one_turn() -> None:
    first, second = shown(user("a"), user([text("b")]), assistant("c"), assistant([CALL]))
    assert first == {"role": "user", "content": [text("a"), text("b")]}
    assert (second["content"], len(second["tool_calls"])) == ("c", 1)
    results = shown(assistant([CALL, CALL | {"id": "2"}]), user([RESULT]), user([RESULT]))
    assert [turn["role"] for turn in results] == ["assistant", "tool", "tool"]


def test_null_under_any_name_is_not_read_and_an_inputs_nulls_stay() -> None:
    odd = CALL | {"novel": None, "cache_control": {"type": "ephemeral"}, "caller": {"type": "x"}}
    (turn,) = shown(assistant([odd, text("b") | {"citations": [{"a": 1}], "other": None}]))
    assert turn["tool_calls"][0]["function"]["arguments"] == INPUT


@pytest.mark.parametrize("kind", ["image", "document", "search_result", "server_tool_use"])
def test_a_block_of_another_kind_is_refused_by_name(kind: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        shown(user([text("a"), {"type": kind, "source": {}}]))
    error = explain(raised.value, at="messages")
    assert (error.param, error.code) == ("messages[0].content[1].type", "unsupported_parameter")
    assert kind in error.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([user([RESULT])], "messages[0].content[0].tool_use_id"),
        ([user([RESULT]), assistant([CALL])], "messages[0].content[0].tool_use_id"),
        ([user([text("a"), CALL])], "messages[0].content[1].type"),
        ([assistant([CALL]), assistant([RESULT])], "messages[1].content[0].type"),
    ],
)
def test_a_block_in_the_wrong_place_is_refused_by_its_path(messages: list[Any], param: str) -> None:
    with pytest.raises(ApiError) as raised:
        shown(*messages)
    assert (raised.value.status, raised.value.param) == (400, param)
