"""JSON Schemas in the one form that a grammar is made of, or what of them cannot be done, by name.

That form has the keywords of `keywords.KINDS` alone, as draft 2020-12 means them, and every
reference names an entry of its own `$defs`. Documents valid by it are valid by the schema given.
Annotations are gone. What the compiler of grammars finds wrong beyond that (a schema that nothing
fits, two patterns that overlap) is not seen here.
"""

from collections.abc import Callable, Mapping
from math import lcm
from typing import Any

from protocol.text.structured.dialects import modernised
from protocol.text.structured.keywords import (
    FORMATS,
    KINDS,
    NO_FORMATS,
    TYPES,
    UNSUPPORTED,
    Kind,
    is_same,
    scaled,
)
from protocol.text.structured.limits import (
    MAX_FACTOR,
    MAX_SCHEMA_DEPTH,
    SchemaError,
    UnsupportedKeyword,
    check_limits,
)
from protocol.text.structured.references import Path, References

MAX_COUNT = 2**31 - 1
Schema = dict[str, Any] | bool
"""Normalised. True is written `{}`; False stays."""
_FITTED = "must be a schema that something fits: an object or true"


def normalised_schema(schema: object) -> dict[str, Any]:
    """Raises SchemaError. One that says nothing, of which any text of JSON is a document, becomes
    an object's schema: a number might never end."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise SchemaError(None, _FITTED)
    _check_nesting(schema)
    return _Normaliser(schema).run()


def _check_nesting(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
    if level:
        raise SchemaError(None, f"is nested deeper than {MAX_SCHEMA_DEPTH}")


class _Normaliser:
    """Of one schema, once."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._references = References(root)
        self._names: dict[int, str] = {}  # by identity of what a reference names
        self._paths: dict[str, Path] = {}
        self._left: list[tuple[str, Any]] = []
        self._factor = 1

    def run(self) -> dict[str, Any]:
        body = self._schema(self._root, None)
        defs: dict[str, Schema] = {}
        while self._left:
            name, target = self._left.pop()
            defs[name] = body if target is self._root else self._schema(target, self._paths[name])
            if target is self._root:
                body = {"$ref": f"#/$defs/{name}"}
        if not isinstance(body, dict):
            raise SchemaError(None, _FITTED)
        body = body or {"type": "object"}
        check_limits(body, defs, paths=self._paths)
        return {**body, "$defs": defs} if defs else body

    def _schema(self, given: object, path: Path) -> Schema:
        if isinstance(given, bool):
            return {} if given else False
        if not isinstance(given, dict):
            raise SchemaError(path, "must be a schema: an object, true or false")
        written: dict[str, Any] = {}
        for keyword, value in modernised(self._told_apart(given)).items():
            at = (path, f".{keyword}")
            if keyword == "$ref":
                written[keyword] = self._reference(value, at)
            elif kind := KINDS.get(keyword):
                value = self._readers[kind](self, value, at)
                if keyword == "oneOf" and isinstance(value, list):
                    _check_containers_apart(value, at)
                if value is not None or kind is Kind.ANY:
                    written[keyword] = value
            elif not any(is_same(value, one) for one in UNSUPPORTED.get(keyword, (value,))):
                raise UnsupportedKeyword(at)
        if written.keys() == {"allOf"} and len(written["allOf"]) == 1:
            written = written["allOf"][0]
        return written

    def _told_apart(self, node: dict[str, Any]) -> dict[str, Any]:
        """OpenAPI's `discriminator` names a property that each alternative has, though it may have
        a default, and whose values tell them apart."""
        match node:
            case {"discriminator": {"propertyName": str(name)}, "oneOf": list(given), **rest}:
                pass
            case _:
                return node
        try:
            wholes = [self._whole(inner) for inner in given]
            values = [value for whole in wholes for value in _texts_of(whole["properties"][name])]
        except (KeyError, TypeError, ValueError):
            return node  # as any other oneOf
        if len(set(values)) < len(values) or "anyOf" in rest:
            return node
        also = {"required": [name]}
        return rest | {
            "anyOf": [
                inner if name in whole.get("required", ()) else {"allOf": [inner, also]}
                for inner, whole in zip(given, wholes, strict=True)
            ]
        }

    def _whole(self, node: dict[str, Any]) -> dict[str, Any]:
        found = self._references.find(node["$ref"])[0] if "$ref" in node else node
        if not isinstance(found, dict):
            raise TypeError("no object's schema")
        return found

    def _reference(self, value: object, at: Path) -> str:
        try:
            if not isinstance(value, str):
                raise ValueError("must be a string")
            target, path = self._references.find(value)
        except ValueError as error:
            raise SchemaError(at, str(error)) from error
        if id(target) not in self._names or isinstance(target, bool):
            name = str(len(self._paths))
            self._names[id(target)], self._paths[name] = name, path
            self._left.append((name, target))
        return f"#/$defs/{self._names[id(target)]}"

    def _factor_of(self, value: object, at: Path) -> object:
        """A `multipleOf`. Together, for a number may have to meet them all."""
        if _number(value, at) <= 0:
            raise SchemaError(at, "must be a number above 0")
        self._factor = lcm(self._factor, scaled(_number(value, at)))
        if self._factor > MAX_FACTOR:
            rule = f"without decimal points, at most {MAX_FACTOR} as the common multiple of all"
            raise SchemaError(at, rule)
        return value

    def _schemas(self, value: object, at: Path) -> list[Schema]:
        if not isinstance(value, list) or not value:
            raise SchemaError(at, "must be a list of schemas, at least one")
        return [self._schema(inner, (at, f"[{index}]")) for index, inner in enumerate(value)]

    def _named_schemas(self, value: object, at: Path) -> dict[str, Schema]:
        if not isinstance(value, dict):
            raise SchemaError(at, "must be an object of schemas")
        return {name: self._schema(inner, (at, f".{name}")) for name, inner in value.items()}

    _readers: Mapping[Kind, Callable[["_Normaliser", Any, Path], object]] = {
        Kind.ANY: lambda _, value, at: value,
        Kind.TYPES: lambda _, value, at: _types(value, at),
        Kind.VALUES: lambda _, value, at: _values(value, at),
        Kind.TEXT: lambda _, value, at: _text(value, at),
        Kind.FORMAT: lambda _, value, at: _format(value, at),
        Kind.NUMBER: lambda _, value, at: _number(value, at),
        Kind.FACTOR: _factor_of,
        Kind.COUNT: lambda _, value, at: _count(value, at),
        Kind.NAMES: lambda _, value, at: _names(value, at),
        Kind.SCHEMA: _schema,
        Kind.SCHEMAS: _schemas,
        Kind.NAMED_SCHEMAS: _named_schemas,
    }


def _check_containers_apart(alternatives: list[Schema], at: Path) -> None:
    """Raises UnsupportedKeyword where an object or a list that one alternative writes out may fit
    another: the compiler, which refuses all other alternatives that overlap, does not see it."""
    for one in alternatives:
        for value in [] if isinstance(one, bool) else _written_out(one):
            others = (other for other in alternatives if other is not one)
            if isinstance(value, dict | list) and any(_may_fit(value, each) for each in others):
                raise UnsupportedKeyword(at)


def _may_fit(value: dict[str, Any] | list[Any], schema: Schema) -> bool:
    if isinstance(schema, bool):
        return schema
    kind = "object" if isinstance(value, dict) else "array"
    if "type" in schema and kind not in schema["type"]:
        return False
    is_open = "enum" not in schema and "const" not in schema
    return is_open or any(is_same(value, each) for each in _written_out(schema))


def _written_out(schema: dict[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def _texts_of(told: dict[str, Any]) -> list[str]:
    """Raises KeyError, TypeError or ValueError where the values are not texts."""
    values = [told["const"]] if "const" in told else list(told["enum"])
    if not all(isinstance(value, str) for value in values):
        raise ValueError("only texts tell apart")
    return values


def _types(value: object, at: Path) -> object:
    types = value if isinstance(value, list) else [value]
    if not types or not all(isinstance(one, str) and one in TYPES for one in types):
        raise SchemaError(at, f"must be one or more of {', '.join(sorted(TYPES))}")
    return value


def _values(value: object, at: Path) -> object:
    if not isinstance(value, list) or not value:
        raise SchemaError(at, "must be a list of values, at least one")
    return value


def _text(value: object, at: Path) -> object:
    if not isinstance(value, str):
        raise SchemaError(at, "must be a string")
    return value


def _format(value: object, at: Path) -> object:
    """None: it asks for nothing."""
    if not isinstance(value, str) or value not in FORMATS | NO_FORMATS:
        raise SchemaError(at, f"known are {', '.join(sorted(FORMATS))}")
    return value if value in FORMATS else None


def _number(value: object, at: Path) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(at, "must be a number")
    return value


def _count(value: object, at: Path) -> object:
    number = _number(value, at)
    if number != int(number) or not 0 <= number <= MAX_COUNT:
        raise SchemaError(at, f"must be a whole number from 0 to {MAX_COUNT}")
    return int(number)


def _names(value: object, at: Path) -> object:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise SchemaError(at, "must be a list of names")
    return value
