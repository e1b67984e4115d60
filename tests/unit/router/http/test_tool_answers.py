"""Calls and reasoning in answers: as OpenAI shapes them, whole and streamed."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, chat, events_of
from support.tools import ARGUMENTS, CALL, TIME, TIME_CALL, WEATHER, tool_bench

pytestmark = pytest.mark.anyio
TOOLS = [WEATHER, TIME]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tool_bench(tmp_path)


async def choice_of(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await chat(client, tools=TOOLS, **fields)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def deltas_of(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    events = events_of(await chat(client, tools=TOOLS, stream=True, **fields))
    assert events.pop() == "[DONE]"
    assert events[-1]["choices"][0]["delta"] == {}
    return [event["choices"][0]["delta"] for event in events]


async def test_a_call_is_answered_in_openais_shape(client: httpx.AsyncClient) -> None:
    choice = await choice_of(client)
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert call.pop("id")
    function = {"name": "get_weather", "arguments": ARGUMENTS}
    assert call == {"type": "function", "function": function}


async def test_a_streamed_call_begins_with_its_name_and_goes_on_with_its_arguments(
    client: httpx.AsyncClient,
) -> None:
    role, first, *rest, _ = await deltas_of(client)
    assert role == {"role": "assistant", "content": "", "refusal": None}
    (begun,) = first["tool_calls"]
    assert begun.pop("id")
    function = {"name": "get_weather", "arguments": ""}
    assert begun == {"index": 0, "type": "function", "function": function}
    pieces = [piece for delta in rest for piece in delta["tool_calls"]]
    assert all(set(piece) == {"index", "function"} and piece["index"] == 0 for piece in pieces)
    assert "".join(piece["function"]["arguments"] for piece in pieces) == ARGUMENTS


async def test_text_before_several_calls_is_content(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = f"Let me see.\n{CALL}\n{TIME_CALL}"
    message = (await choice_of(client))["message"]
    assert message["content"].strip() == "Let me see."
    names = [call["function"]["name"] for call in message["tool_calls"]]
    ids = {call["id"] for call in message["tool_calls"]}
    assert names == ["get_weather", "get_time"] and len(ids) == 2
    deltas = await deltas_of(client)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls if "id" in call] == [0, 1]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]


async def test_a_call_that_was_cut_ends_by_length(client: httpx.AsyncClient) -> None:
    choice = await choice_of(client, max_tokens=40)
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert ARGUMENTS.startswith(call["function"]["arguments"])


async def test_wherever_calls_are_cut_nothing_of_them_is_content(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = f"{CALL}\n{TIME_CALL}"
    num_tokens = len(bench.tokenizer.encode(bench.dispatcher.reply))
    told = [await choice_of(client, max_tokens=most) for most in range(1, num_tokens, 3)]
    assert {choice["finish_reason"] for choice in told} == {"length"}
    assert {choice["message"]["content"] or "" for choice in told} <= {""}


async def test_without_tools_the_same_text_is_content(client: httpx.AsyncClient) -> None:
    without: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}]
    for fields in without:
        response = await chat(client, **fields)
        message = response.json()["choices"][0]["message"]
        assert message["content"] == CALL and "tool_calls" not in message, fields


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_apart_under_both_its_names(
    bench: Bench, client: httpx.AsyncClient, stream: bool
) -> None:
    bench.dispatcher.reply = f"<think>\nWhere?\n</think>\n\n{CALL}"
    if stream:
        deltas = await deltas_of(client)
        told = {
            name: "".join(delta.get(name, "") for delta in deltas)
            for name in ("reasoning", "reasoning_content", "content")
        }
    else:
        message = (await choice_of(client))["message"]
        told = {**message, "content": message["content"] or ""}
    assert told["reasoning"] == told["reasoning_content"]
    assert told["reasoning"].strip() == "Where?"
    assert "think" not in told["content"]


async def test_reasoning_may_be_left_out_or_in_the_content(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.reply = "<think>\nWhere?\n</think>\n\nHere."
    response = await chat(client, include_reasoning=False)
    message = response.json()["choices"][0]["message"]
    assert "reasoning" not in message and message["content"].strip() == "Here."
    details = response.json()["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < response.json()["usage"]["completion_tokens"]
    response = await chat(client, separate_reasoning=False)
    assert response.json()["choices"][0]["message"]["content"] == bench.dispatcher.reply


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_there_for_every_token_of_a_call(
    bench: Bench, client: httpx.AsyncClient, stream: bool
) -> None:
    response = await chat(client, tools=TOOLS, logprobs=True, stream=stream)
    if stream:
        choices = [event["choices"][0] for event in events_of(response)[:-1]]
    else:
        choices = response.json()["choices"]
    entries = [entry for one in choices for entry in (one["logprobs"] or {}).get("content", ())]
    assert "".join(entry["token"] for entry in entries[:-1]) == CALL
    assert len(entries) == bench.dispatcher.num_made


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_token_ids_are_told_once_each(
    bench: Bench, client: httpx.AsyncClient, path: str
) -> None:
    prompt = (
        {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    )
    body = {"model": "tiny", "return_token_ids": True, "max_tokens": 99, **prompt}
    whole = (await client.post(path, json=body)).json()
    choice, sent = whole["choices"][0], bench.dispatcher.requests[0]
    told = whole if "chat" in path else choice
    assert told["prompt_token_ids"] == list(sent.token_ids)
    assert len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
    events = events_of(await client.post(path, json=body | {"stream": True}))[:-1]
    pieces = [event["choices"][0].get("token_ids", []) for event in events]
    assert [one for piece in pieces for one in piece] == choice["token_ids"]
    first = events[0] if "chat" in path else events[0]["choices"][0]
    assert first["prompt_token_ids"] == list(sent.token_ids)


async def test_tokens_may_be_named_by_their_number(bench: Bench, client: httpx.AsyncClient) -> None:
    fields = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    (entry, *_) = (await choice_of(client, **fields))["logprobs"]["content"]
    number = bench.dispatcher.tokenizer.encode(CALL)[0]
    assert entry["token"] == entry["top_logprobs"][0]["token"] == f"token_id:{number}"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_stopped_the_text_is_told(
    bench: Bench, client: httpx.AsyncClient, stream: bool
) -> None:
    bench.dispatcher.reply = "One, two."
    number = bench.dispatcher.tokenizer.encode(",")[0]
    cases: list[tuple[dict[str, Any], object]] = [
        ({"stop": "two"}, "two"),
        ({"stop_token_ids": [number]}, number),
        ({}, None),
        ({"max_tokens": 1}, None),
    ]
    for fields, told in cases:
        response = await chat(client, stream=stream, **fields)
        last = events_of(response)[-2] if stream else response.json()
        assert last["choices"][0]["stop_reason"] == told, fields
