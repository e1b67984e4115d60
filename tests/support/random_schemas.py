"""JSON Schemas by chance, of keywords that a grammar can hold an answer to; many fit nothing."""

from random import Random
from typing import Any

PATTERNS = ("^a", "[a-z]", "b$", r"^[A-Z]\d*$", "^(ab|cd)*$", r"\s", "^[^a]*$", "^.{2}$", r"\S")
MAX_DEPTH = 3
Schema = dict[str, Any]


def random_schema(chance: Random) -> Schema:
    return {**_schema(chance, 0), "$defs": {name: _schema(chance, 1) for name in "pq"}}


def _schema(chance: Random, depth: int) -> Schema:
    kinds = (_object, _object, _array, _string, _number, _number, _values, _union)
    schema = chance.choice(kinds)(chance, depth + 1)
    if depth < MAX_DEPTH and chance.random() < 0.1:
        schema[chance.choice(("anyOf", "allOf"))] = _some(chance, depth + 1)
    if chance.random() < 0.08:
        schema["$ref"] = chance.choice(("#/$defs/p", "#/$defs/q"))
    if chance.random() < 0.1:
        schema.pop("type", None)
    return schema


def _some(chance: Random, depth: int) -> list[Schema]:
    return [_schema(chance, depth) for _ in range(chance.randrange(1, 4))]


def _chosen(chance: Random, odds: float, **values: tuple[Any, ...]) -> Schema:
    return {name: chance.choice(of) for name, of in values.items() if chance.random() < odds}


def _object(chance: Random, depth: int) -> Schema:
    names = chance.sample("abcdef", chance.randrange(4))
    more = _schema(chance, depth) if depth < MAX_DEPTH else True
    return {
        "type": "object",
        "properties": {name: _schema(chance, depth) for name in names},
        "required": chance.sample(names, chance.randrange(len(names) + 1)),
        **_chosen(chance, 0.5, additionalProperties=(False, {"type": "integer"}, more)),
        **_chosen(chance, 0.1, minProperties=(0, 1, 2), maxProperties=(0, 1, 2, 3)),
        **_chosen(chance, 0.1, patternProperties=({"^x": {"type": "null"}}, {"y$": {}})),
    }


def _array(chance: Random, depth: int) -> Schema:
    first = _some(chance, depth) if depth < MAX_DEPTH else [{}]
    bounds = _chosen(chance, 0.4, minItems=(0, 1, 2), maxItems=(0, 1, 2, 3), prefixItems=(first,))
    return {"type": "array", "items": _schema(chance, depth), **bounds}


def _string(chance: Random, depth: int) -> Schema:
    bounds = _chosen(chance, 0.35, minLength=(0, 1, 2, 3), maxLength=(2, 5, 9), pattern=PATTERNS)
    formats = ("date", "uuid", "ipv4", "email", "time")
    return {"type": "string", **bounds, **_chosen(chance, 0.1, format=formats)}


def _number(chance: Random, depth: int) -> Schema:
    bounds = _chosen(chance, 0.4, minimum=(-5, 0, 2, 3.5, -0.25), maximum=(6, 10, 12.5, 100))
    bounds |= _chosen(chance, 0.2, exclusiveMinimum=(-5, 0, 2, 3.5), exclusiveMaximum=(9, 7.5))
    factors = (1, 2, 5, 0.5, 0.25)  # as floats what they are
    kind = chance.choice(("integer", "number", ["integer", "string"]))
    return {"type": kind, **bounds, **_chosen(chance, 0.2, multipleOf=factors)}


def _values(chance: Random, depth: int) -> Schema:
    values = [None, True, 3, -3.75, "", 'b"c', "é", [], [1, "x"], {"a": None}, {"b": [0.5]}]
    return {"enum": chance.sample(values, chance.randrange(1, 4))}


def _union(chance: Random, depth: int) -> Schema:
    if depth > MAX_DEPTH:
        return {"type": "null"}
    return {chance.choice(("anyOf", "oneOf", "allOf")): _some(chance, depth)}
