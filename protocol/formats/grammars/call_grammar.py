"""Grammars of outputs with calls, made of the way a format's template writes them.

What such a grammar allows, the format's parser reads as calls of these tools whose arguments fit.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.formats.contract import Tool, ToolError
from protocol.formats.grammars.lark import Rules
from protocol.formats.reading.bound import BoundFormat
from protocol.formats.reading.values import ALL_KINDS, parameter_kinds
from protocol.formats.table import VALUES, Written
from protocol.text.structured.grammars import JsonStyle, json_form
from protocol.text.structured.limits import SchemaError, UnsupportedKeyword

STYLE = JsonStyle(closed=True)
"""Arguments are those that a tool names, unless it names none."""
_SLOT = re.compile(r"\{(index|envelope|arguments|parameters|keywords)\}")
_HOLDS = ("minLength", "maxLength", "pattern", "format")
Schema = Mapping[str, Any]


class CallGrammar:
    """ToolError says of which tool, and what of it, no grammar can be made."""

    def __init__(self, bound: BoundFormat, written: Written, rules: Rules) -> None:
        self._format, self._written, self._rules = bound.format, written, rules
        states = (state for state, takes in bound.format.states.items() if takes in VALUES)
        self._no_value = {text for state in states for text in bound.terminals[state].texts}
        """What no value that is bare text can have in it."""

    def calls(
        self, tools: Sequence[Tool], *, several: bool, only_strict: bool, after: str = ""
    ) -> str:
        """What matches calls of the tools; `only_strict`: arguments of the others are free.
        `after`: what of the first has come already."""
        written, literal = self._written, self._rules.literal
        skips = 0 if written.begin else len(after)
        one = self._any_call(tools, only_strict)
        first = self._any_call(tools, only_strict, skips) if skips else one
        more = f"({literal(written.between)} {one})*" if several else ""
        begin = literal(written.begin.removeprefix(after))
        return f"{begin} {first} {more} {literal(written.end)}"

    def _any_call(self, tools: Sequence[Tool], only_strict: bool, skips: int = 0) -> str:
        return self._rules.add(" | ".join(self._call(tool, only_strict, skips) for tool in tools))

    def _call(self, tool: Tool, only_strict: bool, skips: int) -> str:
        text = self._written.call[skips:].replace("{name}", tool.name)
        text = text.replace("{id}", f"functions.{tool.name}:{{index}}")
        parts = _SLOT.split(text)
        out = [self._rules.literal(parts[0])]
        is_free = only_strict and not tool.strict
        for slot, after in zip(parts[1::2], parts[2::2], strict=True):
            out += [self._slot(slot, tool, is_free), self._rules.literal(after)]
        return " ".join(out)

    def _slot(self, slot: str, tool: Tool, is_free: bool) -> str:
        schema = {"type": "object"} if is_free else tool.parameters
        match slot:
            case "index":
                return "/[0-9]{1,3}/"
            case "arguments":
                return self._json(schema, tool)
            case "envelope":
                keys = {role: key for key, role in reversed([*self._format.roles.items()])}
                name = json.dumps(tool.name, ensure_ascii=False)
                head = f'{{"{keys["name"]}": {name}, "{keys["arguments"]}": '
                return f'{json.dumps(head, ensure_ascii=False)} {self._json(schema, tool)} "}}"'
            case "parameters":
                return self._parameters(schema, tool)
            case _:
                return self._keywords(schema, tool)

    def _json(self, schema: object, tool: Tool, name: str | None = None) -> str:
        """Of the parameter `name`, or of all. Of a tool that is not strict, any object where no
        grammar can be made of its schema."""
        try:
            return self._rules.json(json_form(schema, STYLE))
        except SchemaError as error:
            if tool.strict:
                path = ".".join(part for part in (_path(name), error.path) if part)
                is_wrong = not isinstance(error, UnsupportedKeyword)
                raise ToolError(tool, path, error.rule, is_wrong=is_wrong) from error
        return self._rules.json(json_form({"type": "object"}))

    # -- parameters one by one --------------------------------------------------------------

    def _parameters(self, schema: Schema, tool: Tool) -> str:
        named = _properties(schema)
        if not named and schema.get("additionalProperties", True) is not False:
            return f"({self._parameter(None, ALL_KINDS, {}, tool)})*"
        required = schema.get("required", ())
        out = []
        for name, inner in named.items():
            rule = self._parameter(name, parameter_kinds(schema, name), inner, tool)
            out.append(rule if name in required else f"({rule})?")
        return " ".join(out)

    def _parameter(self, name: str | None, kinds: frozenset[str], schema: Any, tool: Tool) -> str:
        """None: of any name."""
        key = _ANY_NAME if name is None else json.dumps(name, ensure_ascii=False)
        literal, template = self._rules.literal, self._written.parameter
        before, _, rest = template.partition("{key}")
        between, _, after = rest.partition("{value}")
        line = "\n" if self._format.trim_lines else ""
        after = after.removeprefix(line)
        is_text = "string" in kinds
        value = self._value(kinds, schema, line, after, tool, name)
        kind = "string" if is_text else min(kinds - {"integer"} or {"number"})
        between = between.replace("{is_string}", str(is_text).lower()).replace("{type}", kind)
        return f"{literal(before)} {key} {literal(between)} {value}"

    def _value(
        self,
        kinds: frozenset[str],
        schema: Any,
        line: str,
        after: str,
        tool: Tool,
        name: str | None,
    ) -> str:
        """With what follows it; `line` does too, where it is not part of the value."""
        literal = self._rules.literal
        if (values := _listed(schema)) is not None:
            texts = [one if isinstance(one, str) else json.dumps(one) for one in values]
            return f"({' | '.join(literal(text + line + after) for text in texts)})"
        if "string" not in kinds:
            return f"{self._json(schema, tool, name)} {literal(line + after)}"
        if tool.strict and (keyword := _held_by(schema)):
            rule = f"{keyword} of a string cannot be held to in the format {self._format.name}"
            raise ToolError(tool, _path(name), rule)
        end = next((text for text in self._no_value if after.startswith(text)), "")
        rest = literal(after[len(end) :])
        return (
            f"{self._rules.any_until(end or after, self._no_value - {end})} {rest if end else ''}"
        )

    def _keywords(self, schema: Schema, tool: Tool) -> str:
        """`a=1, b=2`: any but the required ones may be missing."""
        required, first, rest = schema.get("required", ()), "", ""
        for name, inner in reversed(_properties(schema).items()):
            if not name.isidentifier():
                raise ToolError(tool, _path(name), f"no name in the format {self._format.name}")
            pair = f"{json.dumps(f'{name}=')} {self._json(inner, tool, name)}"
            whole = self._rules.add(f"{pair} {rest}")
            others = f'", " {whole}'
            if name in required:
                first, rest = whole, self._rules.add(others)
            else:
                first = self._rules.add(f"{whole} | {first}") if first else f"({whole})?"
                rest = self._rules.add(f"{others} | {rest}") if rest else f"({others})?"
        return first


_ANY_NAME = "/[A-Za-z0-9_]{1,64}/"


def _path(name: str | None) -> str:
    return "" if name is None else f"properties.{name}"


def _properties(schema: Schema) -> dict[str, Any]:
    """Each with the definitions that it may refer to."""
    found = schema.get("properties")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return {
        name: {**shared, **inner} if isinstance(inner, Mapping) else inner
        for name, inner in (found.items() if isinstance(found, Mapping) else ())
    }


def _listed(schema: Any) -> list[Any] | None:
    """The only values that it allows, if it says so."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) and values else None


def _held_by(schema: Any) -> str | None:
    """What it asks of a string beside its being one."""
    if not isinstance(schema, Mapping):
        return None
    inner = [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]
    own = next((key for key in (*_HOLDS, "enum", "const", "$ref") if key in schema), None)
    return own or next((found for one in inner if (found := _held_by(one))), None)
