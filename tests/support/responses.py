"""The Responses API over a fake dispatcher: requests, events read back, and what the model saw."""

import json
from typing import Any

import httpx
from support.api import MODEL, Bench

TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}"
    "{% if m.tool_call_id %}({{ m.tool_call_id }} {{ m.name }}){% endif %}{{ '\n' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.id }} {{ c.function.name }}"
    " {{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    "{% if enable_thinking %}thinking {{ reasoning_effort }}{% endif %}"
)
"""Shows everything that a turn has."""
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


async def respond(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"model": MODEL, "input": "hi"} | fields)


def events_of(body: str) -> list[dict[str, Any]]:
    """Each event, whose name is its type, and whose number is its place."""
    events: list[dict[str, Any]] = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


def prompt_of(bench: Bench) -> str:
    """What the model saw of the last request."""
    tokenizer = bench.tokenizer
    return tokenizer.decode(bench.dispatcher.requests[-1].token_ids, skip_special_tokens=False)
