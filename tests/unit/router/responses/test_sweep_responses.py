"""Every kind of JSON value in every place of a response's request: served, or a refusal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.api import make_bench
from support.odd_values import HOLE, PATH, filled
from support.responses import TEMPLATE, WEATHER

from protocol.ids import RequestId
from router.api.errors import ApiError, openai_error
from router.responses.items import InputItem, InputPart
from router.responses.prepare import FoundResponses, prepare_response, read_request, wanted_ids
from router.responses.schemas import (
    ReasoningOptions,
    ResponseRequest,
    ResponseTool,
    ResponseToolChoice,
    TextFormat,
    TextOptions,
)

HI: dict[str, Any] = {"role": "user", "content": "hi"}
BASE: dict[str, Any] = {"model": "tiny", "input": "hi", "tools": [WEATHER]}
ITEMS: tuple[dict[str, Any], ...] = (
    HI,
    {"type": "reasoning", "summary": [], "content": []},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "item_reference", "id": "msg_aa_0"},
)
CONTEXT = 2048
NOTHING = FoundResponses(kept={}, recent={})
OTHERS = {"context_length_exceeded", "item_not_found", "unsupported_parameter"}
"""Codes of refusals that may be about another field than the one with the odd value."""


def places() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ResponseRequest.__struct_fields__:
        yield name, BASE | {name: HOLE}
    for item in ITEMS:
        for name in (*InputItem.__struct_fields__, "never_heard_of"):
            yield f"input[1].{name}", BASE | {"input": [HI, item | {name: HOLE}]}
    for name in InputPart.__struct_fields__:
        part = {"type": "input_text", "text": "x"} | {name: HOLE}
        for where in ("content", "output", "summary"):
            item = {"type": "function_call_output", "call_id": "c", where: [part]}
            yield f"input[1].{where}[0].{name}", BASE | {"input": [HI, item]}
    for name in ResponseTool.__struct_fields__:
        yield f"tools[0].{name}", BASE | {"tools": [WEATHER | {name: HOLE}]}
    for name in ResponseToolChoice.__struct_fields__:
        choice = {"type": "function", "name": "weather"} | {name: HOLE}
        yield f"tool_choice.{name}", BASE | {"tool_choice": choice}
    for name in TextFormat.__struct_fields__:
        wanted = {"type": "json_schema", "schema": {}} | {name: HOLE}
        yield f"text.format.{name}", BASE | {"text": {"format": wanted}}
    for name in TextOptions.__struct_fields__:
        yield f"text.{name}", BASE | {"text": {name: HOLE}}
    for name in ReasoningOptions.__struct_fields__:
        yield f"reasoning.{name}", BASE | {"reasoning": {name: HOLE}}


def test_any_value_in_any_place_is_served_or_refused_with_its_path(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=TEMPLATE, max_context_tokens=CONTEXT)
    num_served = num_refused = 0
    for place, kind, body in filled(places()):
        try:
            fields = read_request(body)
            wanted_ids(fields)
            prepare_response(bench.runtime, fields, NOTHING, None, RequestId("r"), bench.choose)
            num_served += 1
        except ApiError as error:
            num_refused += 1
            told = json.loads(openai_error(error))["error"]
            where = f"{place}, {kind}: {told}"
            assert error.status == (404 if "not_found" in str(told["code"]) else 400), where
            assert told["param"] is not None and PATH.fullmatch(told["param"]), where
            related = told["param"].startswith(place) or place.startswith(told["param"])
            assert related or told["code"] in OTHERS or place.startswith("input"), where
            assert len(told["message"]) < 400, where
    assert num_served > 100 and num_refused > 500
