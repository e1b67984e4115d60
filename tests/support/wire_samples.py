"""One message of every kind with a value in every field, as this version writes them.

`PYTHONPATH=.:tests python -m support.wire_samples > tests/contract/wire/version_N.json`, once, when
version N of the wire is final: what was written then must be read for as long as N is spoken.
"""

import json
import sys
from itertools import count
from typing import Any, get_args

import msgspec
from msgspec import inspect
from support.words import LAYOUT

from protocol.codec import Codec, to_router, to_worker
from protocol.layout import KvLayout
from protocol.messages import Registration, ToRouter, ToWorker

UNIONS: dict[str, tuple[Codec[Any], Any]] = {
    "to_worker": (to_worker, ToWorker),
    "to_router": (to_router, ToRouter),
}


def kinds(union: object) -> dict[str, type[Any]]:
    """The messages of a closed union, by name."""
    return {kind.__name__: kind for kind in get_args(union)}


def sample(kind: type[Any]) -> Any:
    """The same at every call."""
    return msgspec.convert(_value(inspect.type_info(kind), count(1)), kind)


def written() -> dict[str, dict[str, str]]:
    """All messages, packed, in hexadecimal."""
    packed = {
        name: {one: codec.encode(sample(kind)).hex() for one, kind in sorted(kinds(union).items())}
        for name, (codec, union) in UNIONS.items()
    }
    registration = msgspec.json.encode(sample(Registration)).decode()
    return {**packed, "redis": {"Registration": registration}}


def _value(of: inspect.Type, numbers: "count[int]") -> Any:
    match of:
        case inspect.StructType(cls=cls) if issubclass(cls, KvLayout):
            return msgspec.to_builtins(LAYOUT)
        case inspect.StructType(fields=fields, array_like=True):
            return [_value(field.type, numbers) for field in fields]
        case inspect.StructType(fields=fields, tag_field=tag_field, tag=tag):
            values = {field.encode_name: _value(field.type, numbers) for field in fields}
            return values if tag_field is None else {tag_field: tag, **values}
        case inspect.UnionType(types=types):
            return _value(next(t for t in types if not isinstance(t, inspect.NoneType)), numbers)
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.VarTupleType(item_type=item):
            return [_value(item, numbers)]
        case inspect.TupleType(item_types=items):
            return [_value(item, numbers) for item in items]
        case inspect.IntType():
            return next(numbers)
        case inspect.FloatType():
            return next(numbers) + 0.5
        case inspect.BoolType():
            return True
        case inspect.StrType():
            return f"text {next(numbers)}"
        case inspect.BytesType():
            return bytes([next(numbers)])
        case _:
            raise AssertionError(f"no sample of {of}")


if __name__ == "__main__":
    json.dump(written(), sys.stdout, indent=1)
    print()
