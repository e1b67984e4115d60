from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses import response_create_params
from support.api import Bench, error_of, make_bench
from support.json_schemas import accepts
from support.responses import TEMPLATE, WEATHER, events_of, respond

from router.requests.events import NoWorkers, RequestFailed

pytestmark = pytest.mark.anyio


async def test_an_answer_is_a_response_object(client: httpx.AsyncClient) -> None:
    answer = await respond(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert answer.headers["x-baton-route"] == "split; warm prefix"
    shown = answer.json()
    assert shown["object"] == "response" and shown["id"].startswith("resp_")
    assert (shown["status"], shown["error"], shown["incomplete_details"]) == (
        "completed",
        None,
        None,
    )
    [item] = shown["output"]
    assert item == {
        "id": item["id"],
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}
        ],
    }
    assert (shown["instructions"], shown["metadata"]) == ("Be brief.", {"a": "b"})
    assert (shown["temperature"], shown["top_p"], shown["store"]) == (0.5, 1.0, False)
    assert (shown["tools"], shown["tool_choice"], shown["parallel_tool_calls"]) == (
        [],
        "auto",
        True,
    )
    usage = shown["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


async def test_a_stream_says_what_the_whole_answer_says(client: httpx.AsyncClient) -> None:
    whole = (await respond(client, seed=1)).json()
    response = await respond(client, seed=1, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(response.text)
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = types.count("output_text.delta")
    assert deltas > 2
    assert types == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    said = [event["delta"] for event in events if event["type"].endswith(".delta")]
    assert "".join(said) == "Hello there."
    final = events[-1]["response"]
    assert [item["content"] for item in final["output"]] == [
        item["content"] for item in whole["output"]
    ]
    assert final["usage"] == whole["usage"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    added, done = events[2], events[-2]
    assert added["item"]["id"] == done["item"]["id"] == final["output"][0]["id"]
    assert added["item"]["status"] == "in_progress" and added["item"]["content"] == []


SAID = '<think>I look.</think>Well. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}'


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_thoughts_and_calls_are_items_and_events_of_their_own(
    tmp_path: Path, summary: str | None
) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)
    bench.dispatcher.reply = f"{SAID}</tool_call>"
    asked: dict[str, Any] = {"tools": [WEATHER], "reasoning": {"summary": summary}}
    async with bench.client() as client:
        shown = (await respond(client, **asked)).json()
        events = events_of((await respond(client, stream=True, **asked)).text)
    thought, said, called = shown["output"]
    kind = "reasoning_text" if summary is None else "summary_text"
    where, elsewhere = ("content", "summary") if summary is None else ("summary", "content")
    assert thought[where] == [{"type": kind, "text": "I look."}] and thought[elsewhere] == []
    assert said["content"][0]["text"].strip() == "Well."
    assert (called["type"], called["name"]) == ("function_call", "weather")
    assert called["arguments"] == '{"city": "Rome"}' and called["call_id"]
    assert shown["tools"] == [WEATHER | {"strict": False}]
    assert shown["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    final = events[-1]["response"]["output"]
    for mine, whole in zip(final, shown["output"], strict=True):
        ids = {name: mine[name] for name in ("id", "call_id") if name in mine}
        assert mine == whole | ids
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == final
    deltas: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["type"].split(".")[1], event["output_index"])
            deltas[key] = deltas.get(key, "") + event["delta"]
    name = "reasoning_text" if summary is None else "reasoning_summary_text"
    assert deltas == {
        (name, 0): "I look.",
        ("output_text", 1): said["content"][0]["text"],
        ("function_call_arguments", 2): '{"city": "Rome"}',
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_cut_by_its_length_is_incomplete(
    client: httpx.AsyncClient, stream: bool
) -> None:
    response = await respond(client, max_output_tokens=3, stream=stream)
    if stream:
        events = events_of(response.text)
        assert events[-1]["type"] == "response.incomplete"
    shown = events[-1]["response"] if stream else response.json()
    assert shown["status"] == shown["output"][0]["status"] == "incomplete"
    assert shown["incomplete_details"] == {"reason": "max_output_tokens"}
    assert shown["usage"]["output_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_before_the_first_token_is_a_plain_status(
    bench: Bench, client: httpx.AsyncClient, stream: bool
) -> None:
    bench.dispatcher.failures[-1] = NoWorkers("none")
    response = await respond(client, stream=stream)
    assert response.status_code == 503
    assert error_of(response)["code"] == "no_workers"


async def test_a_failure_in_a_stream_is_an_error_and_a_failed_response(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = RequestFailed("slow", code="deadline")
    events = events_of((await respond(client, stream=True)).text)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == events[-2]["error"]["code"] == "deadline_exceeded"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error" and failed["error"]["message"]
    assert failed["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_those_of_the_text(client: httpx.AsyncClient, stream: bool) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = await respond(client, stream=stream, **asked)
    events = events_of(response.text) if stream else []
    shown = events[-1]["response"] if stream else response.json()
    entries = shown["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries) == "Hello there."
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    streamed = [entry for event in events for entry in event.get("logprobs", [])]
    if stream:  # once with the deltas, and once at the end
        assert streamed == entries * 2


@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
        {"tools": [WEATHER | {"strict": True}]},
    ],
)
async def test_calls_that_must_be_are_held_to_a_grammar(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)
    async with bench.client() as client:
        await respond(client, tools=[WEATHER])
        shown = (await respond(client, **asked)).json()
    free, held = [request.sampling.grammar for request in bench.dispatcher.requests]
    assert free is None and held is not None and "weather" in held.text
    assert shown["tool_choice"] == asked.get("tool_choice", "auto")


async def test_a_strict_tool_that_cannot_be_held_is_refused_by_its_path(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)
    wrong = WEATHER | {"name": "f", "strict": True, "parameters": {"not": {}}}
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    async with bench.client() as client:
        refused = await respond(client, tools=[WEATHER, wrong], tool_choice=choice)
    assert refused.json()["error"]["param"] == "tools[1].parameters.not"


async def test_thoughts_and_calls_have_no_logprobs(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)
    bench.dispatcher.reply = f"{SAID}</tool_call>"
    async with bench.client() as client:
        shown = (await respond(client, tools=[WEATHER], top_logprobs=1)).json()
    [part] = shown["output"][1]["content"]
    said = "".join(entry["token"] for entry in part["logprobs"])
    assert said.strip() == part["text"].strip() == "Well."


async def test_a_large_answer_is_the_same_in_pieces(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = "Hello there. " * 3
    asked: dict[str, Any] = {"top_logprobs": 20, "ignore_eos": True, "max_output_tokens": 200}
    events = events_of((await respond(client, stream=True, **asked)).text)
    whole = (await respond(client, **asked)).json()
    assert len(str(whole)) > 100_000
    assert events[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", None),
        ({"input": None}, "input", None),
        ({"input": 3}, "input", None),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"prompt_logprobs": 0}, "prompt_logprobs", "unsupported_parameter"),
        ({"max_tokens": 2}, "max_tokens", "unsupported_parameter"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name", None),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"max_output_tokens": 9999}, "input", "context_length_exceeded"),
        ({"max_output_tokens": 10**6, "top_logprobs": 20}, "max_output_tokens", None),
        ({"input": "word " * 999}, "input", "context_length_exceeded"),
        ({"input": [{"role": "user"}]}, "input[0].content", None),
        ({"input": [{"content": "x"}]}, "input[0].role", None),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            None,
        ),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", None),
        ({"input": [{"type": "function_call_output"}]}, "input[0].call_id", None),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", "item_not_found"),
        ({"input": [{"id": "msg_aa_0"}]}, "input[0].id", "item_not_found"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", None),
        ({"text": {"format": {"schema": {}}}}, "text.format.schema", None),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"if": True, "then": False}}}},
            "text.format.schema.if",
            "unsupported_parameter",
        ),
        ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "text.format", None),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"model": "gpt-4"}, "model", "model_not_found"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str | None
) -> None:
    response = await respond(client, **fields)
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)
    is_absent = code is not None and code.endswith("not_found")
    assert response.status_code == (404 if is_absent else 400)


async def test_every_parameter_of_the_sdk_is_known_and_null_is_not_given(
    client: httpx.AsyncClient,
) -> None:
    params = set(response_create_params.ResponseCreateParamsNonStreaming.__annotations__)
    params |= set(response_create_params.ResponseCreateParamsBase.__annotations__)
    assert {"input", "stream", "truncation", "conversation"} <= params
    nulls = dict.fromkeys(params - {"input", "model"})
    answer = await respond(client, **nulls)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_object"},
        {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}},
    ],
)
async def test_a_format_of_the_text_is_a_grammar(
    bench: Bench, client: httpx.AsyncClient, wanted: dict[str, Any]
) -> None:
    shown = (await respond(client, text={"format": wanted, "verbosity": "low"})).json()
    grammar = bench.dispatcher.requests[-1].sampling.grammar
    assert grammar is not None and "object" in grammar.text
    assert wanted.items() <= shown["text"]["format"].items()


@pytest.mark.parametrize("strict", [True, False])
async def test_a_strict_format_has_no_properties_but_those_that_it_names(
    bench: Bench, client: httpx.AsyncClient, strict: bool
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "name": "x", "strict": strict, "schema": schema}
    await respond(client, text={"format": wanted})
    grammar = bench.dispatcher.requests[-1].sampling.grammar
    assert grammar is not None and accepts(grammar.text, '{"a": 1, "b": 1}') is not strict


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False, "include": ["reasoning.encrypted_content"]},
        {"background": False, "truncation": "disabled", "service_tier": "auto", "user": "me"},
        {"prompt_cache_key": "k", "safety_identifier": "s", "max_tool_calls": 3},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
        {"text": {"format": None, "verbosity": None}, "reasoning": {"effort": None}},
        {"reasoning": None, "tools": None, "conversation": None, "previous_response_id": None},
    ],
)
async def test_hints_ask_for_nothing(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await respond(client, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"][0]["content"][0]["text"] == "Hello there."
    assert answer.json()["store"] is False
