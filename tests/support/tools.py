"""A chat with tools: a model of a published template, and requests that call and answer."""

import json
from pathlib import Path
from typing import Any

from support.api import Bench, make_bench

PUBLISHED = Path(__file__).parents[1] / "parity" / "chat_templates.json"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
ARGUMENTS = '{"city":  "Ulm"}'
"""With a space of its own: what the model wrote is what the client gets."""
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def published_template(name: str) -> str:
    source: str = json.loads(PUBLISHED.read_text())[name]["source"]
    return source


def tool_bench(path: Path, *, template: str = "qwen3", reply: str = CALL, **more: Any) -> Bench:
    """A model of a published template that says `reply`."""
    more = {"max_context_tokens": 8192, **more}
    bench = make_bench(path, chat_template=published_template(template), **more)
    bench.dispatcher.reply = reply
    return bench


def called(*, arguments: str = ARGUMENTS, **more: Any) -> dict[str, Any]:
    """An answer that called, sent back."""
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function, "index": 0}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def result(content: Any = "rain") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}
