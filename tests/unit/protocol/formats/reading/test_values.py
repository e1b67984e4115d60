import json

import pytest

from protocol.formats.reading.values import ALL_KINDS, as_json, parameter_kinds

SCHEMA = {
    "properties": {
        "s": {"type": "string"},
        "n": {"type": ["integer", "null"]},
        "any": {},
        "union": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/b"}]},
        "enum": {"enum": ["a", 1]},
        "const": {"const": True},
        "loop": {"$ref": "#/properties/loop"},
        "odd": {"type": "colour"},
        "lost": {"$ref": "#/$defs/none"},
    },
    "$defs": {"b": {"type": "boolean"}},
}


@pytest.mark.parametrize(
    ("key", "kinds"),
    [
        ("s", {"string"}),
        ("n", {"integer", "null"}),
        ("any", ALL_KINDS),
        ("union", {"number", "boolean"}),
        ("enum", {"string", "integer", "number"}),
        ("const", {"boolean"}),
        ("loop", ALL_KINDS),
        ("odd", ALL_KINDS),
        ("lost", ALL_KINDS),
        ("unknown", ALL_KINDS),
    ],
)
def test_the_types_of_a_parameter_are_those_of_its_schema(key: str, kinds: set[str]) -> None:
    assert parameter_kinds(SCHEMA, key) == kinds


@pytest.mark.parametrize(
    ("text", "kinds", "value"),
    [
        ("3", {"integer"}, 3),
        (" 3 ", {"integer"}, 3),
        ("3", {"string"}, "3"),
        ("3.0", {"integer"}, 3.0),
        ("3.5", {"integer"}, "3.5"),
        ("true", {"boolean"}, True),
        ("True", {"boolean"}, True),
        ("None", {"null", "integer"}, None),
        ("{'a': None}", {"object"}, {"a": None}),
        ('{"a": [1]}', {"object"}, {"a": [1]}),
        ("[1, 2", {"array"}, "[1, 2"),
        ("NaN", {"number"}, "NaN"),
        ("two", {"integer"}, "two"),
        ("5", ALL_KINDS, 5),
        ("five", ALL_KINDS, "five"),
        ("(1, 2)", {"array"}, [1, 2]),
        ("[" * 5000, {"array"}, "[" * 5000),
        ("{1, 2}", {"array", "object"}, "{1, 2}"),
    ],
)
def test_a_value_is_of_its_type_where_it_can_be(text: str, kinds: set[str], value: object) -> None:
    read = json.loads(as_json(text, frozenset(kinds)))
    assert read == value and type(read) is type(value)


def test_json_is_kept_as_it_is_written() -> None:
    assert as_json('{"a":1.50,  "b": "\\u00e9"}', ALL_KINDS) == '{"a":1.50,  "b": "\\u00e9"}'
