"""Parameters that a model writes as bare text, as JSON: of which type, their schema says."""

import ast
import json
from collections.abc import Mapping
from typing import Any

MAX_LITERAL = 1 << 16
"""Characters of a value that is read as Python's, where it is not JSON."""
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}
ALL_KINDS = frozenset(_KINDS)


def kinds(schema: object, root: Mapping[str, Any], depth: int = 8) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says; of none: all."""
    if not isinstance(schema, Mapping) or depth == 0:
        return ALL_KINDS
    given = schema.get("type")
    if given is not None:
        names = given if isinstance(given, list) else [given]
        return ALL_KINDS & {name for name in names if isinstance(name, str)} or ALL_KINDS
    if isinstance(reference := schema.get("$ref"), str):
        return kinds(_referred(reference, root), root, depth - 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            return frozenset().union(*(kinds(option, root, depth - 1) for option in options))
    if isinstance(options := schema.get("enum"), list):
        return frozenset(kind for kind in ALL_KINDS if any(_is(value, kind) for value in options))
    if "const" in schema:
        return frozenset(kind for kind in ALL_KINDS if _is(schema["const"], kind))
    return ALL_KINDS


def parameter_kinds(parameters: Mapping[str, Any], key: str) -> frozenset[str]:
    """Of one parameter of a tool, by the schema of all."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping) or key not in properties:
        return ALL_KINDS
    return kinds(properties[key], parameters)


def as_json(text: str, allowed: frozenset[str]) -> str:
    """A value of an allowed type as JSON: `text` itself where it is that, Python's spelling of it
    rewritten, else a string."""
    bare = text.strip()
    python = _from_python(bare) if len(bare) <= MAX_LITERAL else ""
    for candidate in (bare, python):
        if any(_is(value, kind) for kind in allowed - {"string"} for value in _read(candidate)):
            return candidate
    return json.dumps(text, ensure_ascii=False)


def _read(text: str) -> list[Any]:
    """The value of a JSON text, if it is one."""
    try:
        return [json.loads(text, parse_constant=_refused)]
    except (ValueError, RecursionError):
        return []


def _refused(text: str) -> None:
    raise ValueError(text)


def _from_python(text: str) -> str:
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    found: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        found = (
            found.get(name.replace("~1", "/").replace("~0", "~"))
            if isinstance(found, Mapping)
            else None
        )
    return found
