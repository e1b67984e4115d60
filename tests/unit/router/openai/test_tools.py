"""Tools, calls and their results in a request: what the model sees of them, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.api import MODEL, Bench, make_bench
from support.tools import TIME, WEATHER, called, result, tool_bench

from protocol.formats.contract import NamedTool, Tool
from protocol.ids import RequestId
from router.api.errors import ApiError
from router.api.generation import Generation
from router.http.models.tokens import tokenize
from router.openai.prepare import prepare_chat
from router.openai.tools import read_choice, read_tools

USER = {"role": "user", "content": "Weather?"}
CONTEXT = 8192


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tool_bench(tmp_path)


def allowed(name: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}}]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}


def prepared(bench: Bench, **fields: Any) -> Generation:
    body = json.dumps({"model": MODEL, "messages": [USER]} | fields).encode()
    return prepare_chat(bench.runtime, body, RequestId("r"), bench.choose)


def prompt(bench: Bench, **fields: Any) -> str:
    (request,) = prepared(bench, **fields).requests
    return bench.tokenizer.decode(request.token_ids, skip_special_tokens=False)


def refusal(bench: Bench, **fields: Any) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as raised:
        prepared(bench, **fields)
    assert raised.value.status == 400
    return raised.value.param, raised.value.code


def test_tools_are_shown_to_the_model_as_they_were_given(bench: Bench) -> None:
    text = prompt(bench, tools=[WEATHER])
    assert json.dumps(WEATHER) in text
    assert prompt(bench, tools=[WEATHER], tool_choice="none") == prompt(bench)


def test_of_tools_that_are_not_allowed_the_model_hears_nothing(bench: Bench) -> None:
    both = [WEATHER, TIME]
    assert prompt(bench, tools=both, tool_choice=allowed("get_time")) == prompt(bench, tools=[TIME])
    (request,) = prepared(bench, tools=both, tool_choice=allowed("get_time")).requests
    assert request.sampling.grammar is not None
    assert "get_weather" not in request.sampling.grammar.text


def test_a_tool_without_parameters_takes_none(bench: Bench) -> None:
    parameters = {"type": "object", "properties": {}}
    shown = {"type": "function", "function": {"name": "get_time", "parameters": parameters}}
    assert json.dumps(shown) in prompt(bench, tools=[TIME])


def test_calls_and_their_results_are_shown_as_the_model_wrote_and_read_them(bench: Bench) -> None:
    text = prompt(bench, tools=[WEATHER], messages=[USER, called(), result(), USER])
    assert (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>' in text
    )
    assert "<tool_response>\nrain\n</tool_response>" in text
    parts = [{"type": "text", "text": "ra"}, {"type": "text", "text": "in"}]
    assert "\nra\nin\n" in prompt(bench, messages=[USER, called(), result(parts), USER])


def test_arguments_that_are_no_object_stay_the_text_they_are(bench: Bench) -> None:
    for arguments in ("[1]", "{broken", "", '{"a":' * 500):
        text = prompt(bench, messages=[USER, called(arguments=arguments), result(), USER])
        assert f'"arguments": {arguments or "{}"}' in text


def test_reasoning_of_an_answer_is_shown_where_the_template_shows_it(bench: Bench) -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        said = called(**{name: "Which city?"})
        assert "<think>\nWhich city?\n</think>" in prompt(bench, messages=[USER, said, result()])


NEEDS_CONTENT = (
    "{% for m in messages %}{{ m['content'] + '|' }}{{ m.tool_calls }}{% endfor %}{{ tools }}"
)
NEEDS_TEXT = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "{{ call['function']['arguments'] + '|' + m['content'] }}{% endfor %}{% endfor %}{{ tools }}"
)


@pytest.mark.parametrize(
    ("template", "shown"), [(NEEDS_CONTENT, "{'city': 'Ulm'}"), (NEEDS_TEXT, '{"city": "Ulm"}|')]
)
def test_a_template_gets_calls_in_the_form_it_takes(
    tmp_path: Path, template: str, shown: str
) -> None:
    bench = make_bench(tmp_path, chat_template=template)
    assert shown in prompt(bench, messages=[USER, called(), result()])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER | {"mood": 1}]}, "tools[0].mood"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [TIME], "tool_choice": allowed("f")}, "tool_choice.allowed_tools.tools"),
        (
            {"tools": [TIME], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice.allowed_tools.mode",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": WEATHER["function"]}},
            "tool_choice.function.description",
        ),
        (
            {
                "tools": [TIME],
                "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            },
            "tool_choice",
        ),
        ({"messages": [USER | {"tool_calls": called()["tool_calls"]}]}, "messages[0].tool_calls"),
        ({"messages": [USER | {"tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [USER, called(), {"role": "tool"}]}, "messages[2].content"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_a_wrong_tool_or_choice_is_named_by_its_path(
    bench: Bench, fields: dict[str, Any], param: str
) -> None:
    assert refusal(bench, **fields)[0] == param


def test_what_a_strict_tool_cannot_be_held_to_is_named_by_its_path(bench: Bench) -> None:
    def strict(inner: object) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"a": inner}}
        return {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}

    at = "tools[1].function.parameters.properties.a"
    unique, typo = strict({"type": "array", "uniqueItems": True}), strict({"type": "text"})
    assert refusal(bench, tools=[WEATHER, unique]) == (f"{at}.uniqueItems", "unsupported_parameter")
    assert refusal(bench, tools=[WEATHER, typo]) == (f"{at}.type", None)


def test_parameters_are_bounded(bench: Bench) -> None:
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    assert refusal(bench, tools=[tool])[0] == "tools"
    many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(1025)]
    assert refusal(bench, tools=many)[0] == "tools"


def test_hints_beside_tools_are_accepted(bench: Bench) -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    strict = {"strict": False, **WEATHER["function"]}
    assert prompt(bench, tools=[WEATHER | hint | {"function": strict}]) == prompt(
        bench, tools=[WEATHER]
    )
    replayed = called()
    replayed["tool_calls"][0] |= {"provider_specific_fields": {"a": 1}, "caller": None}
    assert prompt(bench, messages=[USER, replayed]) == prompt(bench, messages=[USER, called()])


def test_a_model_that_is_shown_no_tools_or_whose_calls_are_not_known_refuses_them(
    tmp_path: Path,
) -> None:
    blind = make_bench(tmp_path)
    assert refusal(blind, tools=[WEATHER]) == ("tools", "unsupported_parameter")
    mute = make_bench(tmp_path, chat_template="{{ tools }}{{ messages }}")
    assert refusal(mute, tools=[WEATHER]) == ("tools", "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "marks"),
    [
        ({"continue_final_message": True}, {}),
        ({"continue_final_message": True, "add_generation_prompt": False}, {}),
        ({}, {"prefix": True}),
        ({}, {"partial": True}),
    ],
)
def test_an_answer_that_has_begun_is_gone_on_with(
    tmp_path: Path, fields: dict[str, Any], marks: dict[str, Any]
) -> None:
    bench = tool_bench(tmp_path, template="qwen2_5")
    for content in ("It is", [{"type": "text", "text": "It is"}]):
        said = {"role": "assistant", "content": content, **marks}
        assert prompt(bench, messages=[USER, said], **fields).endswith("assistant\nIt is")


def test_only_an_answer_can_be_gone_on_with(bench: Bench) -> None:
    for messages in ([USER], [USER, called()]):
        fields = {"messages": messages, "continue_final_message": True}
        assert refusal(bench, **fields)[0] == "continue_final_message"


def test_thinking_is_switched_as_the_template_reads_it(tmp_path: Path, bench: Bench) -> None:
    off = "<think>\n\n</think>\n\n"
    assert prompt(bench, reasoning_effort="none").endswith(off)
    assert prompt(bench, chat_template_kwargs={"enable_thinking": False}).endswith(off)
    for effort in ("high", None):
        assert not prompt(bench, reasoning_effort=effort).endswith(off)
    harmony = make_bench(
        tmp_path / "effort", chat_template="{{ reasoning_effort }}{{ messages[0].content }}"
    )
    assert prompt(harmony, reasoning_effort="high") == "highWeather?"
    plain = make_bench(tmp_path / "plain")
    assert refusal(plain, reasoning_effort="high") == ("reasoning_effort", "unsupported_parameter")
    assert prompt(plain, reasoning_effort="none") == prompt(plain)


def test_a_model_that_always_thinks_is_not_told_to_stop(tmp_path: Path) -> None:
    bench = tool_bench(tmp_path, template="deepseek_r1_distill")
    assert bench.models.texts[0].formats.reasoning_format != "none"
    assert refusal(bench, reasoning_effort="none") == ("reasoning_effort", "unsupported_parameter")


def test_documents_are_shown_by_templates_that_read_them(tmp_path: Path, bench: Bench) -> None:
    documents = [{"title": "One", "text": "It rains."}]
    assert refusal(bench, documents=documents) == ("documents", "unsupported_parameter")
    reader = make_bench(tmp_path, chat_template="{{ documents[0].text }}{{ messages }}")
    assert prompt(reader, documents=documents).startswith("It rains.")


def test_tokenize_counts_what_a_chat_with_tools_would_have(bench: Bench) -> None:
    fields = {"messages": [USER, called(), result()], "tools": [WEATHER]}
    (request,) = prepared(bench, **fields).requests
    told = tokenize(bench.choose, json.dumps(fields).encode())
    assert told["tokens"] == list(request.token_ids)


def test_more_tokens_than_there_is_room_for_are_refused_or_clamped(bench: Bench) -> None:
    assert refusal(bench, max_tokens=CONTEXT) == ("messages", "context_length_exceeded")
    limits = replace(bench.runtime.limits, clamp_max_tokens=True)
    clamping = replace(bench, runtime=replace(bench.runtime, limits=limits))
    (request,) = prepared(clamping, max_tokens=CONTEXT).requests
    assert request.sampling.max_tokens == CONTEXT - len(request.token_ids)


def test_a_named_tool_is_known_by_its_name() -> None:
    choice = read_choice(b'{"type": "function", "function": {"name": "f"}}')
    assert choice == NamedTool("f")
    (tool,) = read_tools(json.dumps([WEATHER]).encode())
    function = WEATHER["function"]
    assert tool == Tool(
        name="get_weather",
        description="Weather of a city",
        parameters=function["parameters"],
        place="tools[0].function.parameters",
    )
