"""Tools and reasoning by the openai SDK, unmodified, against the router's app on a real socket."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from support.api import MODEL, Bench
from support.tools import ARGUMENTS, CALL, TIME_CALL, WEATHER, tool_bench

pytestmark = pytest.mark.anyio
USER: Any = {"role": "user", "content": "Weather in Ulm?"}
TOOLS: Any = [WEATHER, {"type": "function", "function": {"name": "get_time"}}]


class GetWeather(BaseModel):
    """Weather of a city."""

    city: str


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return tool_bench(tmp_path, reply=f"<think>\nUlm?\n</think>\n\n{CALL}\n{TIME_CALL}")


@pytest.fixture
async def sdk(bench: Bench) -> AsyncIterator[AsyncOpenAI]:
    async with (
        bench.serving() as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


def calls_of(message: Any) -> list[Any]:
    calls: list[Any] = message.tool_calls
    assert all(call.type == "function" for call in calls)
    return calls


async def test_a_call_its_result_and_the_answer(bench: Bench, sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model=MODEL, messages=[USER], tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    weather, time = calls_of(choice.message)
    assert (weather.function.name, weather.function.arguments) == ("get_weather", ARGUMENTS)
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in (weather, time)
    ]
    bench.dispatcher.reply = "It rains."
    messages: Any = [USER, choice.message, *results]
    answer = await sdk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "It rains."
    sent = bench.tokenizer.decode(bench.dispatcher.requests[1].token_ids, skip_special_tokens=False)
    assert "<think>\nUlm?\n</think>" in sent and sent.count("<tool_response>\nrain\n") == 2


async def test_the_sdks_own_stream_reader_puts_calls_together(sdk: AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(model=MODEL, messages=[USER], tools=TOOLS) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    weather, time = calls_of(final.choices[0].message)
    assert (weather.function.name, weather.function.arguments) == ("get_weather", ARGUMENTS)
    assert (time.function.name, time.function.arguments) == ("get_time", "{}")
    assert final.choices[0].finish_reason == "tool_calls"
    assert (final.choices[0].message.model_extra or {})["reasoning"].strip() == "Ulm?"


async def test_its_parse_helper_reads_strict_tools(bench: Bench, sdk: AsyncOpenAI) -> None:
    bench.dispatcher.reply = CALL.replace("get_weather", "GetWeather")
    tool = openai.pydantic_function_tool(GetWeather)
    answer = await sdk.chat.completions.parse(model=MODEL, messages=[USER], tools=[tool])
    (call,) = calls_of(answer.choices[0].message)
    assert call.function.parsed_arguments == GetWeather(city="Ulm")
    sent = bench.tokenizer.decode(bench.dispatcher.requests[0].token_ids)
    assert json.dumps(tool["function"]["parameters"]) in sent
