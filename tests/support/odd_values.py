"""Every kind of JSON value, to be put in every place of a request."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

VALUES = {
    "null": "null",
    "true": "true",
    "false": "false",
    "zero": "0",
    "minus zero": "-0",
    "one": "1",
    "negative": "-1",
    "fraction": "0.5",
    "beyond a float": "1e400",
    "a denormal": "1e-320",
    "beyond 64 bits": str(2**64),
    "400 digits": "1" + "0" * 400,
    "5,000 digits": "1" * 5000,
    "not a number": "NaN",
    "empty": '""',
    "text": '"x"',
    "digits": '"7"',
    "lone surrogate": '"\\ud800"',
    "no character": '"\\u0000"',
    "70 kB": f'"{"x" * 70_000}"',
    "list": "[]",
    "list of null": "[null]",
    "list of text": '["Hello"]',
    "list of ids": "[1]",
    "list of lists": "[[]]",
    "list of objects": "[{}]",
    "many": "[" + "1," * 3000 + "1]",
    "object": "{}",
    "object of text": '{"a": "x"}',
    "object of numbers": '{"7": 1}',
    "a type": '{"type": "text", "text": "x"}',
    "deep list": "[" * 9999 + "]" * 9999,
    "deep object": '{"a":' * 600 + "1" + "}" * 600,
}
HOLE = "<here>"
PATH = re.compile(r"\w+(\.[^.\[\]]{1,64}|\[\d+\])*")
"""Of a refusal's `param`."""


def filled(places: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, str, bytes]]:
    """Of each path and request with a hole there: the path, what kind of value, and the body."""
    for place, request in places:
        for kind, value in VALUES.items():
            yield place, kind, json.dumps(request).replace(f'"{HOLE}"', value).encode()
