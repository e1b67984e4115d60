"""Whatever a grammar of calls allows, the parser of the same format reads as valid calls."""

import json
import random

import jsonschema
import pytest
from support.drawn_texts import Drawer
from support.outputs import Said, read_tokens
from support.published_outputs import FAMILIES

from protocol.formats.contract import NamedTool, Tool, ToolChoice
from protocol.formats.formats import Formats
from protocol.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 0},
        "unit": {"enum": ["C", "F"]},
        "spots": {"type": "array", "items": {"$ref": "#/$defs/spot"}, "maxItems": 2},
        "note": {"type": ["string", "null"]},
    },
    "required": ["city", "spots"],
    "additionalProperties": False,
    "$defs": {"spot": {"type": "object", "properties": {"x": {"type": "number"}}}},
}
TOOLS = (
    Tool(name="get_weather", parameters=SCHEMA, strict=True),
    Tool(name="now", parameters={"type": "object", "properties": {}}),
)
DRAWN = pytest.mark.parametrize("num_drawn", [2, pytest.param(10, marks=pytest.mark.long)])
NAMES = list(FAMILIES)


def _drawn(name: str, seed: int, choice: ToolChoice, parallel: bool = True) -> tuple[Said, str]:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    formats = family.formats(tokenizer)
    prompt = tokenizer.encode(family.generation_prompt)
    output = formats.open(tools=TOOLS, choice=choice, parallel=parallel, prompt_ids=prompt)
    assert output.grammar is not None and not output.grammar.begins_after
    tokens = _drawer(formats, tokenizer).draw(output.grammar, random.Random(seed))
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return read_tokens(tokenizer, output, text), text


def _drawer(formats: Formats, tokenizer: Tokenizer) -> Drawer:
    assert formats.tools is not None
    tags = [] if formats.thinking is None else [formats.thinking.close]
    return Drawer(tokenizer, [*sorted(formats.tools.terminals()), *tags])


def _check_calls(said: Said) -> None:
    for name, arguments, is_whole in said.named:
        tool = next(tool for tool in TOOLS if tool.name == name)
        assert is_whole
        jsonschema.validate(json.loads(arguments), dict(tool.parameters))


@DRAWN
@pytest.mark.parametrize("name", NAMES)
def test_required_calls_are_valid_calls_and_nothing_else(name: str, num_drawn: int) -> None:
    for seed in range(num_drawn):
        said, text = _drawn(name, seed, "required")
        assert said.named, text
        assert said.content.strip() == "" or name == "harmony", text
        _check_calls(said)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_tool_is_called_once(name: str) -> None:
    said, text = _drawn(name, 0, NamedTool("get_weather"))
    assert [call.name for call in said.calls] == ["get_weather"], text
    _check_calls(said)


@DRAWN
@pytest.mark.parametrize("name", NAMES)
def test_calls_that_are_free_to_come_are_valid_too(name: str, num_drawn: int) -> None:
    for seed in range(num_drawn):
        said, text = _drawn(name, seed, "auto", parallel=False)
        assert len(said.calls) <= 1, text
        _check_calls(said)
