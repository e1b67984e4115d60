"""A checkpoint's own `response_template` (transformers 5.13 and later) as a table.

What is read: fields between literal tags; calls as JSON objects, lists of them or Python's calls,
whose name stands in the JSON or in the opening pattern; thoughts between literal tags. Other
patterns and content are refused by name, and the template is not used.
"""

import re
from collections.abc import Mapping
from typing import Any

from protocol.formats.families.json_calls import tagged_objects
from protocol.formats.families.python_calls import tagged_calls
from protocol.formats.families.tagged_lists import tagged_list
from protocol.formats.families.think import TAGS, ThinkTags
from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    ROLES,
    SHOWN,
    OutputFormat,
    Takes,
    Transition,
    Written,
)

NAME = "response_template"
Field = Mapping[str, Any]
_PLACEHOLDER = re.compile(r"\{(?:content\.)?(\w+)\}")
_PLAIN = re.compile(r"(?:\\s\*|\\[^\w\s]|[^\\.*+?()\[\]{}|^$])*")
_NAMED = re.compile(r"(.*?)(?:\\s\*)?\(\?P<name>[^()]*\)(?:\\s\*)?(.*)", re.DOTALL)


def calls_of(template: Mapping[str, Any]) -> OutputFormat | None:
    """None: it has no calls. Raises ValueError for what is not read."""
    fields = _fields(template)
    if (field := fields.get("tool_calls")) is None:
        return None
    close = _literal(field, "close")
    match field:
        case {"open_pattern": str(pattern), "content": "json"} if "content_args" not in field:
            return _named_calls(pattern, close)
        case {"content": "json", "transform_each": True}:
            roles = _roles(field.get("transform"))
            begin, answer = _literal(field, "open"), _answer(fields)
            return tagged_list(NAME, begin, close, answer=answer, roles=roles)
        case {"content": "json"} if "content_args" not in field:
            roles = _roles(field.get("transform"))
            return tagged_objects(NAME, _literal(field, "open"), close, roles=roles)
        case {"content": "python-call-list"}:
            return tagged_calls(NAME, _literal(field, "open"), close)
    raise ValueError(f"{NAME}: calls of the kind {field.get('content')!r} are not read")


def thoughts_of(template: Mapping[str, Any]) -> ThinkTags | None:
    """None: it has none. Raises ValueError for what is not read."""
    fields = _fields(template)
    names = ("thinking", "reasoning_content", "reasoning")
    field = next((fields[name] for name in names if name in fields), None)
    if field is None:
        return None
    close = _literal(field, "close")
    known = (tags for tags in TAGS if tags.close == close)
    return next(known, None) or ThinkTags(NAME, _literal(field, "open"), close)


def _fields(template: Mapping[str, Any]) -> Mapping[str, Field]:
    fields = template.get("fields")
    if not isinstance(fields, Mapping) or {type(one) for one in fields.values()} - {dict}:
        raise ValueError(f"{NAME}: has no fields")
    return fields


def _literal(field: Field, key: str) -> str:
    """Line breaks beside a tag are no part of it here: they go anyway."""
    match field.get(key):
        case str(text) | [str(text)] if text.strip():
            return text.strip()
    raise ValueError(f"{NAME}: {key} must be one literal text")


def _answer(fields: Mapping[str, Field]) -> tuple[str, str] | None:
    content = fields.get("content", {})
    return (_literal(content, "open"), _literal(content, "close")) if "open" in content else None


def _roles(transform: Any) -> Mapping[str, str]:
    """Keys of an envelope, by where the transform has them go."""
    match transform:
        case {"function": "{content}"} | "{content}" | None:
            return ROLES
        case {"function": {"name": str(name), "arguments": str(arguments)}}:
            found = _PLACEHOLDER.fullmatch(name), _PLACEHOLDER.fullmatch(arguments)
            if found[0] and found[1]:
                return {found[0][1]: "name", found[1][1]: "arguments"}
    raise ValueError(f"{NAME}: the transform of calls is not read")


def _named_calls(pattern: str, close: str) -> OutputFormat:
    """Arguments alone in JSON: the name stands in the opening."""
    found = _NAMED.fullmatch(pattern)
    begin, after = (_unescaped(part) for part in found.groups()) if found else ("", "")
    if not begin:
        raise ValueError(f"{NAME}: the opening pattern of calls is not read")
    rows = {
        (CONTENT, begin): Transition("name"),
        ("name", after or "{"): Transition("arguments", stays=not after),
        ("name", close): Transition("after"),
        ("arguments", END): Transition("after"),
        ("arguments", close): Transition("after"),
        ("after", close): Transition(CONTENT),
        ("after", begin): Transition("name"),
        ("after", OTHER): Transition(CONTENT),
    }
    states = {"name": Takes.NAME, "arguments": Takes.ARGUMENTS, "after": Takes.SPACE}
    written = Written(call=f"{begin}{{name}}{after}{{arguments}}{close}")
    return OutputFormat(name=NAME, states={**SHOWN, **states}, rows=rows, written=written)


def _unescaped(pattern: str) -> str:
    """The text that a pattern without choices matches; space in it that may be there is not."""
    if not _PLAIN.fullmatch(pattern):
        raise ValueError(f"{NAME}: the pattern {pattern!r} is not read")
    return re.sub(r"\\(.)", r"\1", pattern.replace(r"\s*", ""))
