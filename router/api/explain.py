"""msgspec's errors in the client's words: which field, by its path, and by what rule.

Never holds more than a few characters of what the client sent. Looks into a body that is not JSON
only if it is small.
"""

import json
import math
import re

import msgspec

from router.api.errors import ApiError, bad_field, unsupported_field
from router.api.shown import shown

MAX_SEARCHED = 64 << 10
"""Bytes in which we look for what was unreadable; beyond it only the field is named."""
MAX_DEPTH = 500
"""Deeper than this is reported as too deep. The reader itself gives up at about 1,000."""
_NOT_JSON = "not valid JSON: numbers are finite, and strings Unicode without lone surrogates"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PATH = re.compile(r"(?:`key` in )?`\$([\w.\[\]]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WRONG_KEY = re.compile(r"""Invalid enum value ['\"](.*)['\"]""", re.DOTALL)
_WRONG_NAME = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_KINDS = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
_TOKENS = re.compile(rb'"((?:[^"\\]|\\.)*+)"|[\[{\]}]', re.DOTALL)


def explain(error: msgspec.ValidationError, *, at: str = "") -> ApiError:
    """The first thing wrong with the field `at`, or the body, by its path as a client writes it."""
    rule, _, where = str(error).rpartition(" - at ")
    path = _PATH.fullmatch(where)
    if path is None:  # of the field itself; what looks like a path was part of a name
        rule, inner = str(error), ""
    else:
        inner = path[1].partition("[...]")[0]  # keys of a client's own have no names here
    param = f"{at}{inner}" if at else inner.removeprefix(".")
    if unknown := _UNKNOWN.fullmatch(rule) or (not param and _WRONG_KEY.fullmatch(rule)):
        name = f"{param}.{shown(unknown[1]) or repr('')}".removeprefix(".")
        return ApiError(400, f"{name}: unknown field", param=name, code="unknown_parameter")
    if missing := _MISSING.fullmatch(rule):
        return bad_field(f"{param}.{missing[1]}".removeprefix("."), "required")
    if wrong := _WRONG_NAME.fullmatch(rule):
        return unsupported_field(param, f"{shown(wrong[1])} is")
    if rule.startswith("Expected `null`"):
        return unsupported_field(param)
    if not param:
        return ApiError(400, "request body: must be a JSON object", code="invalid_json")
    return bad_field(param, _in_words(rule))


def explain_unreadable(error: Exception, raw: bytes, *, at: str = "") -> ApiError:
    """Of JSON that is none, or whose strings or nesting we cannot hold: of a field or the body."""
    if isinstance(error, RecursionError):
        param, rule = at or _deepest_field(raw), "nested too deeply"
    elif (param := _unreadable(raw, at)) is not None:
        rule = _NOT_JSON
    else:
        param, rule = at or None, f"{_NOT_JSON}; {shown(str(error))}"
    return ApiError(400, f"{param or 'request body'}: {rule}", param=param, code="invalid_json")


def _in_words(rule: str) -> str:
    kinds = re.sub(r"`([a-z |]+)`", lambda found: _in_json(found[1]), rule)
    return shown(kinds[:1].lower() + kinds[1:])


def _in_json(kinds: str) -> str:
    """msgspec names kinds as Python does."""
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds.split(" | "))


def _unreadable(raw: bytes, at: str) -> str | None:
    """The path of the first value that JSON cannot hold, though Python can; None: there is none."""
    if len(raw) > MAX_SEARCHED:
        return None
    try:
        value = json.loads(raw.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    left: list[tuple[str, object]] = [(at, value)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            named = [(f"{path}.{shown(key)}", inner) for key, inner in value.items()]
            left += named[::-1] + [(path, key) for key in value]  # keys first: paths name them
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)][::-1]
        elif not _is_json(value):
            return path.removeprefix(".") or None
    return None


def _is_json(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or not _SURROGATE.search(value)


def _deepest_field(body: bytes) -> str | None:
    """The field in which brackets open `MAX_DEPTH` deep."""
    depth, name = 0, b""
    for token in _TOKENS.finditer(body, 0, MAX_SEARCHED):
        if token[0] in b"[{":
            depth += 1
        elif token[0] in b"]}":
            depth -= 1
        elif depth == 1:
            name = token[1]
        if depth > MAX_DEPTH:
            return shown(name.decode(errors="replace")) or None
    return None
