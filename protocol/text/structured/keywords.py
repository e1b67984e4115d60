"""The keywords of JSON Schema as tables: what each holds, and what asks for nothing.

Keywords in none of the tables are annotations: they say nothing of which documents are valid.
"""

from collections.abc import Mapping
from enum import Enum, auto
from fractions import Fraction


class Kind(Enum):
    """What the value of a keyword must be."""

    ANY = auto()
    TYPES = auto()
    VALUES = auto()
    TEXT = auto()
    FORMAT = auto()
    NUMBER = auto()
    FACTOR = auto()
    COUNT = auto()
    NAMES = auto()
    SCHEMA = auto()
    SCHEMAS = auto()
    NAMED_SCHEMAS = auto()


KINDS: Mapping[str, Kind] = {
    "type": Kind.TYPES,
    "const": Kind.ANY,
    "enum": Kind.VALUES,
    "pattern": Kind.TEXT,
    "format": Kind.FORMAT,
    "minLength": Kind.COUNT,
    "maxLength": Kind.COUNT,
    "minimum": Kind.NUMBER,
    "maximum": Kind.NUMBER,
    "exclusiveMinimum": Kind.NUMBER,
    "exclusiveMaximum": Kind.NUMBER,
    "multipleOf": Kind.FACTOR,
    "properties": Kind.NAMED_SCHEMAS,
    "patternProperties": Kind.NAMED_SCHEMAS,
    "additionalProperties": Kind.SCHEMA,
    "required": Kind.NAMES,
    "minProperties": Kind.COUNT,
    "maxProperties": Kind.COUNT,
    "items": Kind.SCHEMA,
    "prefixItems": Kind.SCHEMAS,
    "minItems": Kind.COUNT,
    "maxItems": Kind.COUNT,
    "anyOf": Kind.SCHEMAS,
    "oneOf": Kind.SCHEMAS,
    "allOf": Kind.SCHEMAS,
}
"""Those that a grammar can hold an answer to."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "not": (False,),
    "if": (),
    "then": (True, {}),
    "else": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "additionalItems": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
    "divisibleBy": (),
    "disallow": (),
    "extends": (),
}
"""Those that it cannot -> the values that ask for nothing. Some are told otherwise first, where
they can be (`protocol.text.structured.dialects`)."""

TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
)
NO_FORMATS = frozenset(
    {"binary", "decimal", "directory-path", "double", "file-path", "float", "json-string"}
    | {"multi-line", "password", "path", "textarea"}
)
"""Names for whoever shows a value: no standard says which texts they stand for."""
INTEGER_FORMATS: Mapping[str, tuple[int, int]] = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "uint": (0, 2**64 - 1),
}
"""Of OpenAPI and of those who write schemas from types -> minimum and maximum."""


def is_same(value: object, other: object) -> bool:
    """As JSON: true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def scaled(factor: float) -> int:
    """A `multipleOf` without its decimal point: 0.05 is 5."""
    exact = Fraction(str(factor))
    while exact.denominator > 1:
        exact *= 10
    return int(exact)
