"""JSON Schemas of older drafts, of OpenAPI and of code generators, said as draft 2020-12 says it.

Where both mean the same; where the new form asks for more, an answer to it is one to the old.
"""

from collections.abc import Mapping
from typing import Any

from protocol.text.structured.keywords import INTEGER_FORMATS

Node = Mapping[str, Any]
"""A schema as a client wrote it: nothing but its being a JSON object is known."""
_SECONDS = {"date-time": r"T..:..:[0-5].*[Z\d]$", "time": r"^..:..:[0-5].*[Z\d]$"}
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "if", "$dynamicRef", "patternProperties")


def modernised(node: Node) -> Node:
    """Only of the node itself, not of those in it."""
    if not _OLD.keys() & node.keys():
        return node
    new = dict(node)
    for keyword, rewrite in _OLD.items():
        if keyword in new:
            rewrite(new)
    return new


def _tuple_items(node: dict[str, Any]) -> None:
    """Before 2020-12, a list of items was what prefixItems is."""
    if isinstance(node["items"], list):
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node.pop("additionalItems")


def _additional_items(node: dict[str, Any]) -> None:
    """Say nothing where items are not a list."""
    del node["additionalItems"]


def _exclusive(bound: str, exclusive: str, node: dict[str, Any]) -> None:
    """In draft 4, a flag of the bound beside it."""
    if isinstance(node[exclusive], bool) and node.pop(exclusive) and bound in node:
        node[exclusive] = node.pop(bound)


def _nullable(node: dict[str, Any]) -> None:
    if node.pop("nullable") is True:
        whole = dict(node)
        node.clear()
        node["anyOf"] = [whole, {"type": "null"}]


def _format(node: dict[str, Any]) -> None:
    """A range of numbers, which says nothing of a text. Or a time, but no leap second and in
    capitals: most readers refuse others."""
    seconds, both = _SECONDS.get(str(node["format"])), node.get("allOf", [])
    if seconds is not None and isinstance(both, list):
        node["allOf"] = [*both, {"pattern": seconds}]
    low, high = INTEGER_FORMATS.get(str(node["format"]), (None, None))
    if low is None or high is None:
        return
    del node["format"]
    for bound, value, chosen in (("minimum", low, max), ("maximum", high, min)):
        if isinstance(given := node.get(bound, value), int | float):
            node[bound] = chosen(given, value)


def _property_names(node: dict[str, Any]) -> None:
    """Of a map whose keys are listed, or follow a pattern. What each name shall hold is written
    as often as there are names: only if it is short."""
    if "properties" in node or "patternProperties" in node:
        return
    value = node.get("additionalProperties", True)
    match node["propertyNames"]:
        case {"enum": list(names)} if all(isinstance(name, str) for name in names) and _is_short(
            value
        ):
            node["properties"] = dict.fromkeys(names, value)
        case {"pattern": str(pattern), **rest} if not rest.keys() - {"type"}:
            node["patternProperties"] = {pattern: value}
        case _:
            return
    del node["propertyNames"]
    node["additionalProperties"] = False


def _is_short(value: object) -> bool:
    """A reference, or a simple schema."""
    if not isinstance(value, dict):
        return isinstance(value, bool)
    shown = [one for one in value.values() if not isinstance(one, bool | int | float)]
    return len(value) < 4 and all(isinstance(one, str) and len(one) < 64 for one in shown)


def _unevaluated(node: dict[str, Any]) -> None:
    """Additional ones, where nothing else evaluates any."""
    if not node.keys() & {*_IN_PLACE, "additionalProperties"}:
        node["additionalProperties"] = node.pop("unevaluatedProperties")


_OLD = {
    "items": _tuple_items,
    "additionalItems": _additional_items,
    "exclusiveMinimum": lambda node: _exclusive("minimum", "exclusiveMinimum", node),
    "exclusiveMaximum": lambda node: _exclusive("maximum", "exclusiveMaximum", node),
    "format": _format,
    "propertyNames": _property_names,
    "unevaluatedProperties": _unevaluated,
    "nullable": _nullable,
}
"""Keyword -> what is done about it. The last, for it encloses the rest, is `nullable`."""
