"""`/v1/messages` over a dispatcher without workers: shapes, refusals, what the model is shown."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import HI, MODEL, Bench, make_bench

from protocol.errors import CapacityError
from router.requests.events import NoWorkers, RequestFailed

pytestmark = pytest.mark.anyio
SHOWN = (
    "{# calls are <tool_call>, thoughts <think> </think> #}"
    "{% for m in messages %}[{{ m.role }} {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}]{% endfor %}"
    "{% for t in tools or [] %}<{{ t.function | tojson }}>{% endfor %}"
    "{% if enable_thinking is defined %}"
    "think {{ enable_thinking }} {{ thinking_budget }}{% endif %}"
)
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 50, "messages": HI} | fields
    return await client.post("/v1/messages", json=body)


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, kind and field."""
    body = response.json()
    assert body["type"] == "error"
    error = body["error"]
    assert set(error) <= {"type", "message", "details"}
    return response.status_code, error["type"], error.get("details", {}).get("param")


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[tuple[Bench, httpx.AsyncClient]]:
    """Of a model whose template writes out what it is given."""
    bench = make_bench(tmp_path / "shown", chat_template=SHOWN)
    async with bench.client() as client:
        yield bench, client


def prompt_of(bench: Bench) -> str:
    tokenizer = bench.tokenizer
    return tokenizer.decode(bench.dispatcher.requests[-1].token_ids, skip_special_tokens=False)


async def test_an_answer_has_exactly_anthropics_shape(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.cached_tokens = 3
    response = await ask(client)
    answer = response.json()
    assert answer.pop("id") == f"msg_{response.headers['request-id']}"
    prompt = len(bench.dispatcher.requests[0].token_ids)
    usage = answer.pop("usage")
    assert usage.pop("output_tokens") > 2
    assert usage == {
        "input_tokens": prompt - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello there."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    assert response.headers["x-baton-route"] == "split; warm prefix"


async def test_a_stream_has_anthropics_events_in_their_order(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.cached_tokens = 3
    whole = (await ask(client)).json()
    events = events_of(await ask(client, stream=True))
    kinds = [event["type"] for event in events]
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert kinds == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * len(deltas),
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    started = events[0]["message"]
    assert (started["content"], started["stop_reason"]) == ([], None)
    assert started["usage"]["output_tokens"] == 0
    assert events[2] == {
        "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}
    }  # fmt: skip
    assert "".join(event["delta"]["text"] for event in deltas) == "Hello there."
    assert {event["delta"]["type"] for event in deltas} == {"text_delta"}
    assert events[-2]["usage"] == whole["usage"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


async def test_an_answer_that_is_cut_says_by_what(bench: Bench, client: httpx.AsyncClient) -> None:
    assert (await ask(client, max_tokens=2)).json()["stop_reason"] == "max_tokens"
    bench.dispatcher.reply = "on and on " * 100
    cut = (await ask(client, max_tokens=32_000)).json()
    assert cut["stop_reason"] == "model_context_window_exceeded"
    usage = cut["usage"]
    assert usage["input_tokens"] + usage["output_tokens"] == 256


async def test_sampling_is_as_of_a_chat(bench: Bench, client: httpx.AsyncClient) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["there", "x"]}
    await ask(client, **fields, min_p=0.1, seed=7, cache_salt="mine")
    (request,) = bench.dispatcher.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)
    assert (sampling.stop, sampling.seed, sampling.max_tokens) == (("there", "x"), 7, 50)
    assert request.salt == "mine"


async def test_the_model_is_shown_system_tools_calls_and_results(
    shown: tuple[Bench, httpx.AsyncClient],
) -> None:
    bench, client = shown
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "sunny"}
    messages = [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    response = await ask(client, messages=messages, tools=[TOOL], system="be kind")
    assert response.status_code == 200, response.text
    prompt = prompt_of(bench)
    assert prompt.startswith("[system be kind][user hi][assistant ")
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt
    assert "[tool sunny]" in prompt
    assert '"parameters": {"type": "object"}' in prompt
    await ask(client, messages=messages, tools=[TOOL], tool_choice={"type": "none"})
    assert "parameters" not in prompt_of(bench)


@pytest.mark.parametrize(
    ("thinking", "told"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, "think True 1024"),
        ({"type": "disabled"}, "think False "),
        ({"type": "adaptive", "display": "summarized"}, ""),
        (None, ""),
    ],
)
async def test_thinking_is_the_templates_switch(
    shown: tuple[Bench, httpx.AsyncClient], thinking: Any, told: str
) -> None:
    bench, client = shown
    assert (await ask(client, thinking=thinking)).status_code == 200
    assert prompt_of(bench) == f"[user hi]{told}"


async def test_a_model_that_always_thinks_needs_no_switch_and_cannot_do_without(
    tmp_path: Path,
) -> None:
    template = "{# <think> </think> #}{% for m in messages %}{{ m.content }}{% endfor %}"
    bench = make_bench(tmp_path / "always", chat_template=template)
    async with bench.client() as client:
        enabled = {"type": "enabled", "budget_tokens": 1024}
        assert (await ask(client, thinking=enabled)).status_code == 200
        refused = await ask(client, thinking={"type": "disabled"})
        assert refusal(refused) == (400, "invalid_request_error", "thinking")


CALLS = (
    "<think>hm</think>\n\nI look."
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "at": [1]}}</tool_call>'
    '\n<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
)


async def test_thoughts_and_calls_are_blocks(shown: tuple[Bench, httpx.AsyncClient]) -> None:
    bench, client = shown
    bench.dispatcher.reply = CALLS
    answer = (await ask(client, tools=[TOOL], max_tokens=170)).json()
    thought, text, *calls = answer["content"]
    assert (thought["thinking"], bool(thought["signature"])) == ("hm", True)
    assert text == {"type": "text", "text": "I look."}
    assert [call["input"] for call in calls] == [{"city": "Rome", "at": [1]}, {}]
    assert {(call["type"], call["name"]) for call in calls} == {("tool_use", "weather")}
    assert calls[0]["id"] != calls[1]["id"]
    assert answer["stop_reason"] == "tool_use"
    assert 0 < answer["usage"]["output_tokens_details"]["thinking_tokens"] < 20


def folded(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of a stream, which come one after another."""
    blocks: list[dict[str, Any]] = []
    pieces = ""
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(blocks)
                blocks.append(block)
                pieces = ""
            case {"delta": {"type": "signature_delta", "signature": signature}}:
                blocks[-1]["signature"] = signature
            case {"type": "content_block_delta", "delta": {"type": _, **more}}:
                (piece,) = more.values()
                pieces += str(piece)
            case {"type": "content_block_stop", "index": index}:
                assert index == len(blocks) - 1
                kind = blocks[-1]["type"]
                blocks[-1] |= (
                    {"input": json.loads(pieces)} if kind == "tool_use" else {kind: pieces}
                )
    return blocks


async def test_streamed_blocks_come_to_the_same(shown: tuple[Bench, httpx.AsyncClient]) -> None:
    bench, client = shown
    bench.dispatcher.reply = CALLS
    fields = {"tools": [TOOL], "max_tokens": 170}
    whole = (await ask(client, **fields)).json()["content"]
    streamed = folded(events_of(await ask(client, stream=True, **fields)))
    for block in (*whole, *streamed):
        assert block["type"] != "tool_use" or block.pop("id")
    assert streamed == whole
    assert [block["type"] for block in whole] == ["thinking", "text", "tool_use", "tool_use"]


async def test_thoughts_may_be_left_out(shown: tuple[Bench, httpx.AsyncClient]) -> None:
    bench, client = shown
    bench.dispatcher.reply = CALLS
    thinking = {"type": "adaptive", "display": "omitted"}
    answer = (await ask(client, thinking=thinking, max_tokens=170)).json()
    assert answer["content"][0]["thinking"] == ""
    assert "hm" not in json.dumps(answer)


async def test_calls_may_be_required_named_or_one_at_most(
    shown: tuple[Bench, httpx.AsyncClient],
) -> None:
    bench, client = shown
    for choice, is_held in (
        ({"type": "auto"}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "weather"}, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, True),
    ):
        response = await ask(client, tools=[TOOL], tool_choice=choice)
        assert response.status_code == 200, response.text
        grammar = bench.dispatcher.requests[-1].sampling.grammar
        assert (grammar is not None) == is_held
    other = await ask(client, tools=[TOOL], tool_choice={"type": "tool", "name": "other"})
    assert refusal(other) == (400, "invalid_request_error", "tool_choice")
    unheld = {"name": "f", "strict": True, "input_schema": {"not": {}}}
    assert refusal(await ask(client, tools=[TOOL, unheld]))[2] == "tools[1].input_schema.not"


async def test_an_answer_may_be_held_to_a_schema(bench: Bench, client: httpx.AsyncClient) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    assert (await ask(client, output_config=wanted)).status_code == 200
    grammar = bench.dispatcher.requests[-1].sampling.grammar
    assert grammar is not None and "city" in grammar.text
    schema["properties"]["city"]["uniqueItems"] = True
    refused = await ask(client, output_config=wanted)
    status, kind, param = refusal(refused)
    assert (status, kind) == (400, "invalid_request_error")
    assert param == "output_config.format.schema.properties.city.uniqueItems"


async def test_a_stop_sequence_is_named(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, stop_sequences=["nope", " there"])).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " there")
    assert answer["content"] == [{"type": "text", "text": "Hello"}]


async def test_an_answer_that_has_begun_is_gone_on_with(
    shown: tuple[Bench, httpx.AsyncClient],
) -> None:
    bench, client = shown
    begun = [*HI, {"role": "assistant", "content": "The answer is ("}]
    assert (await ask(client, messages=begun)).status_code == 200
    assert prompt_of(bench) == "[user hi][assistant The answer is ("


async def test_tokens_are_counted_as_a_message_would_have_them(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    body = {"model": MODEL, "messages": HI, "system": "be kind"}
    counted = await client.post("/v1/messages/count_tokens", json=body)
    await ask(client, system="be kind")
    assert counted.json() == {"input_tokens": len(bench.dispatcher.requests[0].token_ids)}
    wrong = await client.post("/v1/messages/count_tokens", json=body | {"top_k": "x"})
    assert refusal(wrong) == (400, "invalid_request_error", "top_k")
    assert wrong.headers["request-id"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"n": 2}, "n"),
        ({"stop": ["x"]}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "x"}, "guided_regex"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"nonsense": 1}, "nonsense"),
        ({"metadata": {"other": "x"}}, "metadata.other"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL | {"input_examples": [{}]}]}, "tools[0].input_examples[0]"),
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await ask(client, **fields)
    assert refusal(response) == (400, "invalid_request_error", param)
    assert param.split("[")[0].split(".")[0] in response.json()["error"]["message"]


HINTS: dict[str, Any] = {
    "metadata": {"user_id": "me"}, "cache_control": {"type": "ephemeral"}, "service_tier": "auto",
    "mcp_servers": [], "speed": "standard", "tools": [], "tool_choice": {"type": "auto"},
    "stop_sequences": [], "thinking": None, "container": None, "top_k": None,
    "context_management": {"edits": []}, "output_config": {}, "n": 1, "return_token_ids": False,
    "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
async def test_hints_that_ask_for_nothing_are_accepted(
    client: httpx.AsyncClient, hint: str
) -> None:
    assert (await ask(client, **{hint: HINTS[hint]})).status_code == 200


async def test_other_refusals_have_its_shape_too(bench: Bench, client: httpx.AsyncClient) -> None:
    assert refusal(await ask(client, model="other")) == (404, "not_found_error", "model")
    assert refusal(await client.get("/v1/messages"))[:2] == (405, "invalid_request_error")
    long = await ask(client, messages=[{"role": "user", "content": "hi " * 400}])
    assert refusal(long)[:2] == (400, "invalid_request_error")
    assert long.json()["error"]["message"].startswith("prompt is too long: ")
    for failure, status, kind in (
        (CapacityError("full", retry_after_s=2.0), 429, "rate_limit_error"),
        (NoWorkers("none"), 503, "overloaded_error"),
        (RequestFailed("late", code="deadline"), 504, "timeout_error"),
        (RequestFailed("bad", code="internal"), 500, "api_error"),
    ):
        bench.dispatcher.failures[-1] = failure
        assert refusal(await ask(client))[:2] == (status, kind)


async def test_a_failure_in_a_stream_is_its_last_event(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    bench.dispatcher.failures[2] = RequestFailed("bad", code="internal")
    events = events_of(await ask(client, stream=True))
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
