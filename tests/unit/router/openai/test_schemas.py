import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.api.errors import ApiError, openai_error
from router.api.parsing import parse_body
from router.openai.schemas import (
    ChatRequest,
    CompletionRequest,
)
from router.openai.unsupported import CHAT_UNSUPPORTED

HI = [{"role": "user", "content": "hi"}]
HARMLESS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "session_id",
    "store",
    "service_tier",
    "verbosity",
    "prediction",
)
"""Accepted, and nothing is done about them."""


def chat(**fields: Any) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "m", "messages": HI} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(
        CompletionRequest, json.dumps({"model": "m", "prompt": "hi"} | fields).encode()
    )


def test_what_is_not_given_is_left_to_the_checkpoint() -> None:
    fields = chat()
    assert (fields.temperature, fields.top_p, fields.top_k, fields.min_p) == (None,) * 4
    assert (fields.repetition_penalty, fields.n, fields.stream) == (None, 1, False)
    assert fields.output_limit is None and fields.num_logprobs is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None, "stop": None, "max_tokens": None, "stream_options": None},
        {"tools": [], "tool_choice": None, "parallel_tool_calls": True, "verbosity": "low"},
        {"response_format": {"type": "text"}, "store": False, "service_tier": "auto"},
        {"never_heard": None, "é": None, "prediction": {"type": "content", "content": "x"}},
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "modalities": ["text"]},
        {"functions": None, "audio": None, "reasoning_effort": None, "top_logprobs": 0},
        {"use_beam_search": False, "length_penalty": 1, "logit_bias": {}, "stop": []},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "reasoning": None},
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    names_only = dict.fromkeys(HARMLESS)
    assert structs.replace(chat(**fields), **names_only) == structs.replace(chat(), **names_only)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("structural_tag", "{}"),
        ("use_beam_search", True),
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
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": [""]}, "stop[0]"),
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
        ({"messages": [{"role": "poet", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [HI[0] | {"mood": None}, HI[0] | {"mood": 1}]}, "messages[1].mood"),
        ({"messages": [HI[0] | {'a"b`': None}]}, 'messages[0].a"b`'),
        ({"messages": [HI[0] | {f"n{i}": None for i in range(33)}]}, "messages[0].n32"),
        (
            {"messages": [HI[0] | {"additional_kwargs": {"tool_calls": [1]}}]},
            "messages[0].additional_kwargs",
        ),
        (
            {"messages": [HI[0] | {f"n{i}": None for i in range(9)} | {"content": "x" * 10**6}]},
            "messages[0].n8",
        ),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"model": 5}, "model"),
        ({"user": 5}, "user"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"temprature": 1}, "temprature"),
        ({"": 1}, "''"),
        ({"x' - at `$.y`": 1}, "x' - at `$.y`"),
        ({"n" * 100_000: 1}, "n" * 60 + "..."),
        ({"temprature": 1, "never_heard": None}, "temprature"),
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
        b"{} {}",
        b"{'model': 1}",
        b'{"model": "m",}',
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
        b'{"m\xff": 1}',
        '{"model": "m"}'.encode("utf-16"),
        b"\xff" * 1000,
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="request body") as raised:
        parse_body(ChatRequest, body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"logit_bias": {"5": -Infinity}', "logit_bias.5"),
        ('"\\ud800": {"\\ud800": "\\ud800"}', None),
        ('"model": "\\ud800"', "model"),
        ('"model": "\\udc00 x"', "model"),
        (
            '"model": "m", "messages": [{"role": "user", "content": "a\\ud83d"}]',
            "messages[0].content",
        ),
        ('"model": "m", "stop": ["a", "b", "\\ud800"]', "stop[2]"),
        ('"model": "m", "metadata": {"a": "\\ud800"}', "metadata.a"),
        ('"model": "m", "metadata": {"\\ud800": "a"}', "metadata"),
        (
            '"model": "m", "messages": [{"role": "user", "content": "\udcff"}]',
            "messages[0].content",
        ),
        ('"chat_template_kwargs": {"a": %s}' % ("[" * 600 + "]" * 600), "chat_template_kwargs"),
        ('"chat_template_kwargs": %s' % ('{"a":' * 40 + "1" + "}" * 40), "chat_template_kwargs"),
        (
            '"chat_template_kwargs": %s' % ('{"a":' * 9999 + "1" + "}" * 9999),
            "chat_template_kwargs",
        ),
        ('"model": "m", "tools": %s' % ("[" * 9999 + "]" * 9999), "tools"),
        ('"model": "m", "messages": %s' % ("[" * 9999 + "]" * 9999), "messages"),
    ],
)
def test_what_no_text_or_stack_can_hold_is_named_by_its_path(
    fields: str, param: str | None
) -> None:
    with pytest.raises(ApiError) as raised:
        parse_body(ChatRequest, f"{{{fields}}}".encode(errors="surrogateescape"))
    assert openai_error(raised.value)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "x" * 1025},
        {"stop": ["x"] * 17},
        {"stop": "x" * (8 << 20)},
        {"user": "x" * 1025},
        {"metadata": {"k": "x" * 513}},
        {"metadata": {"k" * 65: "x"}},
        {"metadata": {f"k{i}": "x" for i in range(17)}},
        {"logit_bias": {str(i): 1 for i in range(1025)}},
        {"stop_token_ids": [1] * 1025},
        {"cache_salt": "x" * 1025},
        {"chat_template_kwargs": {"a": "x" * (64 << 10)}},
    ],
)
def test_what_a_choice_carries_is_bounded(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=r"at most|length") as raised:
        chat(**fields)
    assert (raised.value.param or "").startswith(next(iter(fields)))


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (["a"] * 129, "128 prompts"),
        (['say "x" \\'] * 129, "128 prompts"),
        ([[1]] * 129, "128 prompts"),
        ([7] * (1 << 20 | 1), "1048576 token ids"),
    ],
)
def test_lists_of_prompts_are_bounded(given: object, rule: str) -> None:
    with pytest.raises(ApiError, match=f"prompt: at most {rule}"):
        completion(prompt=given)


def test_as_many_prompts_as_may_be_hold_any_text() -> None:
    texts = ['say "[x]" \\', "[\"a\", 'b']", '"', "\\"] * 32
    assert completion(prompt=texts).prompt == tuple(texts)
    assert completion(prompt='["' * 1000).prompt == ('["' * 1000,)


def test_the_last_of_equal_keys_counts() -> None:
    body = b'{"model": "m", "prompt": "hi", "n": 5, "n": 2}'
    assert parse_body(CompletionRequest, body).n == 2


def test_parts_stay_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = chat(messages=[{"role": "user", "content": parts}]).messages
    assert message.turn("m").as_shown(knows_developer=True) == {"role": "user", "content": parts}


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "x" * 1000])
def test_parts_that_are_not_text_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ApiError, match=f"'{kind[:50]}.* not supported") as raised:
        chat(messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}])
    assert raised.value.param == "messages[0].content[0].type"
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    ("part", "at"),
    [
        ("Hello", ""),
        (1, ""),
        (None, ""),
        ([], ""),
        ({}, ".type"),
        ({"type": "text"}, ".text"),
        ({"type": "text", "text": 5}, ".text"),
        ({"type": 5}, ".type"),
        ({"type": "text", "text": "x", "mood": 1}, ".mood"),
    ],
)
def test_a_bad_part_is_named_by_its_path(part: object, at: str) -> None:
    with pytest.raises(ApiError) as raised:
        chat(messages=[*HI, {"role": "user", "content": ["Hello"] if part == "Hello" else [part]}])
    assert raised.value.param == f"messages[1].content[0]{at}"


@pytest.mark.parametrize(
    "more",
    [
        {"refusal": None, "audio": None, "function_call": None, "tool_calls": None},
        {"tool_calls": [], "annotations": [], "reasoning": None, "reasoning_content": None},
        {"annotations": [{"type": "url_citation"}], "provider_specific_fields": {"a": 1}},
        {"parsed": None, "id": "msg_1", "status": "completed", "type": "message", "weight": 1},
        {"parsed": {"city": "Rome"}, "prefix": False, "partial": None, "images": []},
        {"reasoning_details": [{"type": "reasoning.text"}], "thinking": None, "thinking_blocks": 5},
        {"additional_kwargs": {"refusal": None}, "response_metadata": {}, "files": None},
        {"never.heard-of": None, "class": None, "text": None, "type": None, "é": None},
        {f"n{i}": None for i in range(32)},
        {"content": [{"type": "text", "text": "x", "annotations": [], "mood": None, "role": None}]},
    ],
)
def test_an_answer_of_any_server_can_be_sent_back(more: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "x", **more}
    shown = chat(messages=[*HI, said, *HI]).messages[1].turn("m").as_shown(knows_developer=True)
    parts = [{"type": "text", "text": "x"}]
    assert shown == {"role": "assistant", "content": parts if "content" in more else "x"}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"content": None}, {"content": ""}),
        ({}, {"content": ""}),
        ({"content": None, "refusal": "no"}, {"content": "no"}),
        (
            {"content": [{"type": "refusal", "refusal": "no"}]},
            {"content": [{"type": "text", "text": "no"}]},
        ),
        ({"content": "x", "reasoning_content": "r"}, {"content": "x", "reasoning_content": "r"}),
        ({"content": "x", "reasoning": "r"}, {"content": "x", "reasoning_content": "r"}),
        ({"content": "x", "thinking": "r"}, {"content": "x", "reasoning_content": "r"}),
    ],
)
def test_what_was_answered_reaches_the_template(
    said: dict[str, Any], shown: dict[str, Any]
) -> None:
    (message,) = chat(messages=[{"role": "assistant", **said}]).messages
    assert message.turn("m").as_shown(knows_developer=True) == {"role": "assistant", **shown}


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"audio": {"id": "1"}}, "messages[0].audio"),
        ({"tool_calls": [{"type": "custom"}]}, "messages[0].tool_calls[0].type"),
        ({"images": ["x"]}, "messages[0].images[0]"),
        ({"type": "ai"}, "messages[0].type"),
    ],
)
def test_what_messages_hold_that_is_not_supported_is_refused_by_name(
    said: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError, match="not supported") as raised:
        chat(messages=[{"role": "assistant", "content": "x", **said}])
    assert (raised.value.param, raised.value.code) == (param, "unsupported_parameter")


def test_developer_is_system_to_a_template_that_does_not_know_it() -> None:
    (message,) = chat(messages=[{"role": "developer", "content": "x", "name": "n"}]).messages
    named = {"content": "x", "name": "n"}
    assert message.turn("m").as_shown(knows_developer=False) == {"role": "system", **named}
    assert message.turn("m").as_shown(knows_developer=True) == {"role": "developer", **named}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1], [2, 3]], ([1], [2, 3])),
    ],
)
def test_prompts_come_in_four_forms(given: object, prompts: object) -> None:
    assert completion(prompt=given).prompt == prompts


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([1, "a"], "prompt[1]"),
        (["a", 1], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        ([[1], [2, "a"]], "prompt[1][1]"),
        ([True], "prompt[0]"),
        ([1.5], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([10**30], "prompt[0]"),
        ([None], "prompt[0]"),
        ([[1], []], "prompt[1]"),
        ([[[1]]], "prompt[0][0]"),
        (5, "prompt"),
        ({}, "prompt"),
        (None, "prompt"),
    ],
)
def test_other_prompts_are_refused(given: object, param: str) -> None:
    with pytest.raises(ApiError) as raised:
        completion(prompt=given)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
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
FIELDS = sorted(
    {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *CHAT_UNSUPPORTED}
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any], full: bool) -> None:
    base = {"model": "m", "messages": HI} if full else {}
    with suppress(ApiError):
        parse_body(ChatRequest, json.dumps(base | fields).encode())
    with suppress(ApiError):
        parse_body(CompletionRequest, json.dumps(base | fields).encode())
