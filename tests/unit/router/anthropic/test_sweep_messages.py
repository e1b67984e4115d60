"""Every kind of JSON value in every place of a message's request: served, or a refusal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from support.api import make_bench
from support.odd_values import HOLE, PATH, filled

from protocol.ids import RequestId
from router.anthropic.content import AnyBlock, InputMessage, TextBlock
from router.anthropic.errors import anthropic_error
from router.anthropic.prepare import count_tokens, prepare_message
from router.anthropic.schemas import (
    MessagesRequest,
    MessageTool,
    MessageToolChoice,
    OutputConfig,
    Thinking,
)
from router.api.errors import ApiError

TEMPLATE = (
    "{# <tool_call> <think> </think> #}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}"
    "{% endfor %}{{ tools }}{{ enable_thinking }}"
)
HI: dict[str, Any] = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
USE: dict[str, Any] = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
BASE: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [HI], "tools": [TOOL]}
BLOCKS: tuple[dict[str, Any], ...] = (
    {"type": "text", "text": "x"},
    {"type": "thinking", "thinking": "x", "signature": "x"},
    {"type": "redacted_thinking", "data": "x"},
    USE,
    {"type": "tool_result", "tool_use_id": "t", "content": "x"},
)
CONTEXT = 2048


def places() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in (*MessagesRequest.__struct_fields__, "container", "never_heard_of"):
        yield name, BASE | {name: HOLE}
    for name in InputMessage.__struct_fields__:
        yield f"messages[1].{name}", BASE | {"messages": [HI, HI | {name: HOLE}]}
    for block in BLOCKS:
        yield from _places_of(block)
    for name in MessageTool.__struct_fields__:
        yield f"tools[0].{name}", BASE | {"tools": [TOOL | {name: HOLE}]}
    for field, whole, of in (
        ("tool_choice", {"type": "tool", "name": "f"}, MessageToolChoice),
        ("thinking", {"type": "enabled", "budget_tokens": 9}, Thinking),
        ("output_config", {}, OutputConfig),
    ):
        for name in of.__struct_fields__:
            yield f"{field}.{name}", BASE | {field: whole | {name: HOLE}}
    wanted = {"format": {"type": "json_schema", "schema": HOLE}}
    yield "output_config.format.schema", BASE | {"output_config": wanted}


def _places_of(block: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each block after a call that a result may belong to."""
    kinds: dict[str, Any] = {kind.__struct_config__.tag: kind for kind in AnyBlock.__args__}
    result = block["type"] == "tool_result"
    for name in (*kinds[block["type"]].__struct_fields__, "type", "never_heard_of"):
        odd = block | {name: HOLE}
        asked = [HI, {"role": "assistant", "content": [USE] if result else [odd]}]
        more = [{"role": "user", "content": [odd]}] if result else []
        yield f"messages[{2 if result else 1}].content[0].{name}", BASE | {"messages": asked + more}
    if result:
        for name in TextBlock.__struct_fields__:
            odd = block | {"content": [{"type": "text", "text": "x"} | {name: HOLE}]}
            asked = [
                HI,
                {"role": "assistant", "content": [USE]},
                {"role": "user", "content": [odd]},
            ]
            yield "messages[2].content[0].content[0]", BASE | {"messages": asked}


def test_any_value_in_any_place_is_served_or_refused_with_its_path(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=CONTEXT)
    num_served = num_refused = 0
    for place, kind, body in filled(places()):
        try:
            prepare_message(bench.runtime, body, RequestId("r"), bench.choose)
            num_served += 1
        except ApiError as error:
            num_refused += 1
            told = json.loads(anthropic_error(error))["error"]
            where = f"{place}, {kind}: {told}"
            param = told.get("details", {}).get("param")
            assert error.status == (404 if error.code == "model_not_found" else 400), where
            assert param is not None and PATH.fullmatch(param), where
            related = param.startswith(place) or place.startswith(param)
            known = error.code in ("context_length_exceeded", "unsupported_parameter")
            assert related or known or place.startswith("messages"), where
            assert len(told["message"]) < 400, where
    assert num_served > 100 and num_refused > 500


def test_a_count_reads_what_a_message_would(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=CONTEXT)
    body = msgspec.json.encode(BASE)
    prepared = prepare_message(bench.runtime, body, RequestId("r"), bench.choose)
    counted = count_tokens(bench.choose, body)
    assert counted == {"input_tokens": prepared.prompt_tokens}
