import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.openai.errors import ApiError
from router.openai.parsing import parse_body
from router.openai.schemas import (
    ChatRequest,
    CompletionRequest,
)
from router.openai.unsupported import CHAT_UNSUPPORTED

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "m", "messages": HI} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(
        CompletionRequest, json.dumps({"model": "m", "prompt": "hi"} | fields).encode()
    )


def test_defaults_are_those_of_openai() -> None:
    fields = chat()
    assert (fields.temperature, fields.top_p, fields.n, fields.stream) == (1.0, 1.0, 1, False)
    assert fields.output_limit is None and fields.num_logprobs is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None, "stop": None, "max_tokens": None, "stream_options": None},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "store": False, "service_tier": "auto"},
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "modalities": ["text"]},
        {"functions": None, "audio": None, "reasoning_effort": None, "top_logprobs": 0},
        {"use_beam_search": False, "length_penalty": 1, "logit_bias": {}, "stop": []},
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    ours = chat(**fields).model_dump(exclude={"user", "metadata", "safety_identifier"})
    assert ours == chat().model_dump(exclude={"user", "metadata", "safety_identifier"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("store", True),
        ("service_tier", "priority"),
        ("prompt_logprobs", 1),
        ("guided_json", {}),
        ("use_beam_search", True),
        ("continue_final_message", True),
        ("web_search_options", {}),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ApiError, match=f"{field}: not supported") as raised:
        chat(**{field: value})
    assert (raised.value.status, raised.value.param) == (400, field)
    assert raised.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**20}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role=tool"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"user": 5}, "user"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"temprature": 1}, "temprature"),
        ({"temprature": None}, "temprature"),
    ],
)
def test_a_mistake_is_named_by_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as raised:
        chat(**fields)
    assert (raised.value.status, raised.value.param) == (400, param)
    assert raised.value.message.startswith(param)
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\x00",
        b"[" * 100_000,
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="request body") as raised:
        parse_body(ChatRequest, body)
    assert raised.value.status == 400


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "a\nb"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
def test_parts_that_are_not_text_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ApiError, match=f"messages\\[0\\].content: .*'{kind}'"):
        chat(messages=[{"role": "user", "content": [{"type": kind}]}])


def test_a_bad_text_part_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ApiError, match=r"messages\[0\].content: .*text: required"):
        chat(messages=[{"role": "user", "content": [{"type": "text"}]}])


def test_an_answer_of_ours_can_be_sent_back_as_a_message() -> None:
    said = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}
    assert chat(messages=[*HI, said, *HI]).messages[1].content == "x"


def test_developer_is_system_to_a_template_that_does_not_know_it() -> None:
    (message,) = chat(messages=[{"role": "developer", "content": "x", "name": "n"}]).messages
    named = {"content": "x", "name": "n"}
    assert message.as_shown(knows_developer=False) == {"role": "system", **named}
    assert message.as_shown(knows_developer=True) == {"role": "developer", **named}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompts_come_in_four_forms(given: object, prompts: object) -> None:
    assert completion(prompt=given).prompt == prompts


@pytest.mark.parametrize(
    "given", [[], [[]], [1, "a"], ["a", 1], [[1], "a"], [True], [1.5], 5, {}, None, [[1], []]]
)
def test_other_prompts_are_refused(given: object) -> None:
    with pytest.raises(ApiError) as raised:
        completion(prompt=given)
    assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"messages": HI}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_completions_refuse_by_name_too(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as raised:
        completion(**fields)
    assert raised.value.param == param


def test_best_of_as_many_as_are_returned_asks_for_nothing() -> None:
    assert completion(n=2, best_of=2).n == 2


def test_stop_and_biases_arrive_in_one_form() -> None:
    fields = chat(stop="x", logit_bias={"7": -100, "3": 2.5})
    assert fields.stop == ("x",)
    assert fields.logit_bias == ((3, 2.5), (7, -100.0))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *CHAT_UNSUPPORTED})


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any], full: bool) -> None:
    base = {"model": "m", "messages": HI} if full else {}
    with suppress(ApiError):
        parse_body(ChatRequest, json.dumps(base | fields).encode())
    with suppress(ApiError):
        parse_body(CompletionRequest, json.dumps(base | fields).encode())
