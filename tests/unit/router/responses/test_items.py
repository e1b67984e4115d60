"""What a model sees of the items of a request."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.api import Bench, make_bench
from support.responses import TEMPLATE, WEATHER, prompt_of, respond

from router.responses.items import InputItem, input_shapes, read_input, read_items, turns_of

pytestmark = pytest.mark.anyio
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city": "Rome"}',
    "status": "completed",
}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "warm"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=2048)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with bench.client() as client:
        yield client


async def shown(bench: Bench, client: httpx.AsyncClient, items: Any, **fields: Any) -> str:
    """What lies before the answer."""
    answer = await respond(client, input=items, **fields)
    assert answer.status_code == 200, answer.text
    return prompt_of(bench).removesuffix("<|im_start|>assistant\n")


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def called(text: str) -> str:
    return f"<tool_call>{text}</tool_call>"


@pytest.mark.parametrize(
    "items",
    [
        "hello",
        [{"role": "user", "content": "hello"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        [{"role": "user", "content": "hello", "nonsense": None, "status": "completed"}],
        [{"role": "user", "content": [{"type": "input_text", "text": "hello", "detail": None}]}],
    ],
)
async def test_a_text_is_a_users(bench: Bench, client: httpx.AsyncClient, items: Any) -> None:
    assert await shown(bench, client, items) == turn("user", "hello")


async def test_instructions_come_first(bench: Bench, client: httpx.AsyncClient) -> None:
    items = [{"role": "developer", "content": "b"}, {"role": "user", "content": "c"}]
    said = await shown(bench, client, items, instructions="a")
    assert said == turn("system", "a") + turn("system", "b") + turn("user", "c")


async def test_thought_text_and_calls_are_one_turn(bench: Bench, client: httpx.AsyncClient) -> None:
    said = await shown(
        bench,
        client,
        [
            {"role": "user", "content": "weather?"},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": part("think", "reasoning_text"),
            },
            {"role": "assistant", "content": part("I look.", "output_text", annotations=[])},
            CALL,
            CALL | {"call_id": "call_2", "arguments": "not JSON"},
            OUTPUT,
        ],
    )
    calls = called('call_1 weather {"city": "Rome"}') + called('call_2 weather "not JSON"')
    assert said == (
        turn("user", "weather?")
        + turn("assistant", f"<think>think</think>I look.{calls}")
        + turn("tool(call_1 weather)", "warm")
    )


async def test_answers_that_follow_each_other_stay_apart(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    items: list[dict[str, Any]] = [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        CALL,
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        CALL,
    ]
    call = called('call_1 weather {"city": "Rome"}')
    assert await shown(bench, client, items) == (
        turn("assistant", "a")
        + turn("assistant", f"no{call}")
        + turn("assistant", f"<think>hm</think>{call}")
    )


async def test_a_template_sees_tools_unless_none_is_to_be_called(
    bench: Bench, client: httpx.AsyncClient
) -> None:
    tools: list[Any] = [WEATHER, WEATHER | {"name": "time"}]
    said = await shown(bench, client, "hi", tools=tools)
    assert '"name": "weather"' in said and '"name": "time"' in said
    assert await shown(bench, client, "hi", tools=tools, tool_choice="none") == turn("user", "hi")
    some = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "time"}],
    }
    said = await shown(bench, client, "hi", tools=tools, tool_choice=some)
    assert '"name": "weather"' not in said and '"name": "time"' in said


async def test_effort_is_the_templates(bench: Bench, client: httpx.AsyncClient) -> None:
    await respond(client, reasoning={"effort": "low"})
    assert prompt_of(bench).endswith("thinking low")
    await respond(client, reasoning={"effort": "none", "summary": "auto"})
    assert "thinking" not in prompt_of(bench)


def part(text: str, kind: str, **more: Any) -> list[dict[str, Any]]:
    return [{"type": kind, "text": text} | more]


def test_items_that_are_kept_say_the_same_again() -> None:
    given: list[Any] = [
        {"role": "user", "content": "a", "id": "x"},
        {"type": "reasoning", "id": "x", "summary": [], "content": part("t", "reasoning_text")},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        CALL,
        OUTPUT | {"output": part("o", "input_text")},
    ]
    items = read_input(msgspec.json.encode(given))
    shapes = input_shapes(items, "tok")
    assert [shape["id"] for shape in shapes] == ["x", "tok_in1", "tok_in2", "fc_1", "tok_in4"]
    again = read_items(msgspec.json.encode(shapes))

    def texts(items: tuple[InputItem, ...]) -> list[Any]:
        turns = turns_of(items, [""] * len(items))
        return [(turn.role, turn.texts, turn.reasoning, turn.calls) for turn in turns]

    assert texts(again) == texts(items)
