"""What a JSON Schema may cost, and whether a document of finite size fits it.

The compiler of grammars goes down a schema and what it refers to by recursion, in machine code: it
ends the process where the stack does. It writes out anew what it merges, that is all that is
referred to from within an `allOf` or beside other keywords.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from protocol.text.structured.references import Path, written

MAX_SCHEMA_DEPTH = 100
"""Of objects and lists in each other; the compiler's own limit is 127."""
MAX_STACK = 500
"""Schemas within schemas, of the root and of all that is referred to, one below the other. The
compiler ran out of 8 MB at 1,500 to 2,500."""
MAX_MERGED = 20_000
"""Schemas, those written out again counted again, and what `_weight` adds. 20,000 take a second at
worst."""
MAX_FACTOR = 10_000
"""Of all `multipleOf`, without decimal points. It is a state machine of so many states: 60 ms."""
MAX_WIDTH = 2000
"""Ways in which a document may go on at one place. The compiler gives up at so many, in the middle
of a text, and needs a time that goes with their square: 0.3 s for 15,000."""
_WAYS_OF_OPTIONAL, _FAR = 4, 32
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties")
_ONES = ("items", "additionalProperties")
Defs = Mapping[str, Any]


class SchemaError(ValueError):
    """What is wrong with a schema. `path` is where, from its root: `properties.a.type`, or ""."""

    def __init__(self, path: Path, rule: str) -> None:
        self.path = written(path)
        self.rule = rule
        super().__init__(f"{self.path or 'the schema'}: {rule}")


class UnsupportedKeyword(SchemaError):
    """No grammar can hold an answer to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "not supported")


def check_limits(body: dict[str, Any], defs: Defs, *, paths: Mapping[str, Path]) -> None:
    """Of a normalised schema; `paths` are those of `defs`. Raises SchemaError."""
    if (stack := sum(map(_depth, (body, *defs.values())))) > MAX_STACK:
        raise SchemaError(None, f"at most {MAX_STACK} schemas below each other; got {stack}")
    if _Merged(defs).size_of(body) > MAX_MERGED:
        raise SchemaError(
            None, f"more than {MAX_MERGED} schemas and values, those merged counted each time"
        )
    if (width := _Widths(defs).widest(body)) > MAX_WIDTH:
        rule = f"at most {MAX_WIDTH} ways to go on at one place ({_WAYS_OF_OPTIONAL} for each"
        raise SchemaError(None, f"{rule} property that is not required); got {width}")
    finite = _finite(defs)
    for name in sorted(defs.keys() - finite, key=int):
        raise SchemaError(paths[name], "no document of finite size fits it")
    if not _is_finite(body, finite):
        raise SchemaError(None, "no document of finite size fits it")


def inner_schemas(node: Any) -> Iterator[tuple[str, Any]]:
    """Those directly in a normalised schema, each with the step to it, such as
    `.items`."""
    if not isinstance(node, dict):
        return
    for keyword in _LISTS:
        for index, one in enumerate(node.get(keyword, ())):
            yield f".{keyword}[{index}]", one
    for keyword in _MAPS:
        for name, one in node.get(keyword, {}).items():
            yield f".{keyword}.{name}", one
    for keyword in _ONES:
        if keyword in node:
            yield f".{keyword}", node[keyword]


def reference(node: Any) -> str | None:
    """The entry of `$defs` that a normalised schema refers to."""
    found = node.get("$ref") if isinstance(node, dict) else None
    return None if found is None else found.removeprefix("#/$defs/")


def merges(node: Any) -> bool:
    """Whether schemas that hold for the same value are made one: what is in them is written out."""
    if not isinstance(node, dict):
        return False
    in_place = node.keys() & {"$ref", "anyOf", "oneOf", "allOf"}
    return "allOf" in node or (bool(in_place) and len(node.keys() - {"$defs"}) > 1)


def _depth(node: Any) -> int:
    return 1 + max((_depth(inner) for _, inner in inner_schemas(node)), default=0)


class _Merged:
    """Sizes in schemas of what is written out. What merges itself again is refused elsewhere."""

    def __init__(self, defs: Defs) -> None:
        self._defs = defs
        self._sizes: dict[str, int] = {}

    def size_of(self, body: dict[str, Any]) -> int:
        return sum(self._size(node, merged=False) for node in (body, *self._defs.values()))

    def _size(self, node: Any, *, merged: bool) -> int:
        size, left = 0, [(node, merged)]
        while left:
            node, merged = left.pop()
            size, merged = size + _weight(node), merged or merges(node)
            name = reference(node)
            if name is not None and merged:
                if name not in self._sizes:
                    self._sizes[name] = 0  # while it is in itself
                    self._sizes[name] = self._size(self._defs[name], merged=True)
                size += self._sizes[name]
            left.extend((inner, merged) for _, inner in inner_schemas(node))
        return min(size, MAX_MERGED + 1)


class _Widths:
    """Ways in which a value of a schema may begin; scalars are told apart by the lexer. What is
    farther than `_FAR` references and unions counts as one."""

    def __init__(self, defs: Defs) -> None:
        self._defs = defs
        self._widths: dict[str, int] = {}

    def widest(self, body: dict[str, Any]) -> int:
        """Of a schema and `defs`, and of all within them."""
        most, left = 0, [body, *self._defs.values()]
        while left:
            node = left.pop()
            most = max(most, self._width(node, _FAR))
            left.extend(inner for _, inner in inner_schemas(node))
        return most

    def _width(self, node: Any, far: int) -> int:
        if not isinstance(node, dict) or far == 0:
            return 1
        num_optional = len(node.get("properties", {}).keys() - set(node.get("required", ())))
        num_lists = sum(isinstance(value, dict | list) for value in node.get("enum", ()))
        most = max(1, _WAYS_OF_OPTIONAL * num_optional, num_lists)
        if (name := reference(node)) is not None:
            most = max(most, self._width_of_entry(name, far - 1))
        for keyword in ("anyOf", "oneOf"):
            ways = [one for one in node.get(keyword, ()) if not _is_scalar(one)]
            most = max(most, sum([self._width(one, far - 1) for one in ways]))
        return most

    def _width_of_entry(self, name: str, far: int) -> int:
        if name not in self._widths:
            self._widths[name] = 1  # while it is in itself
            self._widths[name] = self._width(self._defs[name], far)
        return self._widths[name]


def _is_scalar(node: Any) -> bool:
    return isinstance(node, dict) and node.get("type") not in (None, "object", "array")


def _weight(node: Any) -> int:
    """Patterns are compared with each other; values with whatever they are merged with."""
    if not isinstance(node, dict):
        return 1
    return 1 + len(node.get("patternProperties", ())) ** 2 + len(node.get("enum", ()))


def _finite(defs: Defs) -> set[str]:
    """Which of them a finite document fits: those that need only such."""
    finite: set[str] = set()
    while found := {
        name for name, node in defs.items() if name not in finite and _is_finite(node, finite)
    }:
        finite |= found
    return finite


def _is_finite(node: Any, finite: Collection[str]) -> bool:
    """False only where what is known of `finite` forbids it."""
    if not isinstance(node, dict):
        return True  # that nothing fits `false` is for the compiler to say
    if (name := reference(node)) is not None and name not in finite:
        return False
    if not all(_is_finite(one, finite) for one in node.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if not any(_is_finite(one, finite) for one in node.get(keyword, (True,))):
            return False
    needed = {"object": _properties_needed, "array": _items_needed}.get(str(node.get("type")))
    return needed is None or all(_is_finite(one, finite) for one in needed(node))


def _properties_needed(node: dict[str, Any]) -> list[Any]:
    properties = node.get("properties", {})
    return [properties[name] for name in node.get("required", ()) if name in properties]


def _items_needed(node: dict[str, Any]) -> list[Any]:
    num, first = node.get("minItems", 0), node.get("prefixItems", [])
    return [*first[:num], *([node["items"]] if num > len(first) and "items" in node else [])]
