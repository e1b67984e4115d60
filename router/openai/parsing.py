"""Bytes of a request body to a checked schema, or a refusal that names the field.

Null means "not given". What Baton does not do is refused by name; a value that asks for nothing
(`tools: []`) is accepted.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from router.openai.errors import ApiError, bad_field

MAX_SHOWN = 60
"""Characters of a wrong value that its error message repeats."""
Unsupported = Mapping[str, tuple[object, ...]]
"""Fields we do not support -> the values that ask for nothing, besides null."""


class Schema(BaseModel):
    """A JSON object of ours: no other fields, no conversions, no changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
    unsupported: ClassVar[Unsupported] = {}


S = TypeVar("S", bound=Schema)


def parse_body(schema: type[S], body: bytes) -> S:
    """What the client sent. Raises ApiError 400, which names the field at fault."""
    fields = drop_nothings(json_object(body), schema=schema)
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0]) from error


def json_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            400, f"request body: not valid JSON: {error}", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise ApiError(400, "request body: must be a JSON object", code="invalid_json")
    return value


def drop_nothings(
    fields: Mapping[str, Any], *, schema: type[Schema], at: str = ""
) -> dict[str, Any]:
    """`fields` without those that ask for nothing. Refuses what we do not support."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if name in schema.unsupported:
            if value is not None and value not in schema.unsupported[name]:
                raise unsupported_field(at + name)
        elif value is not None or name not in schema.model_fields:
            kept[name] = value
    return kept


def unsupported_field(param: str) -> ApiError:
    message = f"{param}: not supported by this server"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def explain(error: ErrorDetails, *, at: str = "") -> ApiError:
    """The first thing wrong, by the field's path as a client would write it."""
    param = at
    for part in error["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    rule = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not error["loc"]:  # fields that contradict each other; the rule names the one at fault
        return bad_field(*rule.split(": ", 1))
    match error["type"]:
        case "extra_forbidden":
            return ApiError(400, f"{param}: unknown field", param=param, code="unknown_parameter")
        case "missing":
            return bad_field(param, "required")
        case _:
            return bad_field(param, f"{rule}; got {shown(error['input'])}")


def shown(value: object) -> str:
    """A wrong value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
