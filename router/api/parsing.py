"""Bytes of a request body to a checked schema, or a refusal that names the field.

In two steps, so that nothing is built of what will be refused: the body to its fields, each still
bytes, up to the first unknown one; then each field, if it is not too large, to its type, up to the
first wrong value. Null means "not given", under any name; of equal keys the last counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from router.api.errors import ApiError, bad_field, unsupported_field
from router.api.explain import explain, explain_unreadable

MAX_FIELD_BYTES = 64 << 10
"""Of JSON, of every field but those whose length the context bounds (`Schema.large`): the most
that 16 stop strings or 1,024 biases need, and what 128 choices may each carry to a worker."""
MAX_UNKNOWN = 16
"""Names that we do not know, each null: for each the body is read once more."""
Unsupported = Mapping[str, tuple[object, ...]]
"""Fields we do not support -> the values that ask for nothing, besides null."""
Reader = Callable[[bytes], Any]
"""A field's JSON to its value. Raises msgspec's errors, and ValueError with the rule."""


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object of ours: no other fields, no conversions, no changes later."""

    unsupported: ClassVar[Unsupported] = {}
    large: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be as large as the body."""
    readers: ClassVar[Mapping[str, Reader]] = {}
    """Of fields whose type does not say all; the others are decoded by their type."""


S = TypeVar("S", bound=Schema)


def parse_body(schema: type[S], body: bytes) -> S:
    """What the client sent. Raises ApiError 400, which names the field at fault."""
    form = _form(schema)
    given = {name: bytes(raw) for name, raw in _split(form, body).items()}
    values = {
        name: _read_field(form, name, raw)
        for name, raw in given.items()
        if not _asks_for_nothing(form, name, raw)
    }
    for name in form.required:
        if name not in values:
            raise bad_field(name, "required")
    return schema(**values)


@dataclass(frozen=True, slots=True)
class _Form:
    """What is known of a schema before any body."""

    schema: type[Schema]
    names: tuple[str, ...]
    readers: Mapping[str, Reader]
    required: tuple[str, ...]


@cache
def _form(schema: type[Schema]) -> _Form:
    fields = msgspec.structs.fields(schema)
    by_type = {
        field.name: msgspec.json.Decoder(field.type).decode
        for field in fields
        if field.name not in schema.readers
    }
    return _Form(
        schema=schema,
        names=(*(field.name for field in fields), *schema.unsupported),
        readers={**by_type, **schema.readers},
        required=tuple(field.name for field in fields if field.required),
    )


def _split(form: _Form, body: bytes) -> dict[str, msgspec.Raw]:
    """The fields that were given, undecoded. Builds no value of the client's."""
    unknown: dict[str, ApiError] = {}
    while True:
        try:
            fields = _envelope((*form.names, *unknown)).decode(body)
            break
        except msgspec.ValidationError as error:
            refusal = explain(error)
            name = refusal.param
            if name is None or name in unknown or len(unknown) == MAX_UNKNOWN:
                raise refusal from error
            unknown[name] = refusal
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise explain_unreadable(error, body) from error
    for name, refusal in unknown.items():
        if bytes(fields.pop(name, b"")) != b"null":
            raise refusal
    return fields


@lru_cache(maxsize=64)
def _envelope(names: tuple[str, ...]) -> msgspec.json.Decoder[dict[str, msgspec.Raw]]:
    known: Any = Literal[names]
    return msgspec.json.Decoder(dict[known, msgspec.Raw])


def _asks_for_nothing(form: _Form, name: str, raw: bytes) -> bool:
    unsupported = form.schema.unsupported
    if raw == b"null" or name not in unsupported:
        return raw == b"null"
    if not any(_is_same(raw, harmless) for harmless in unsupported[name]):
        raise unsupported_field(name)
    return True


def _is_same(raw: bytes, harmless: object) -> bool:
    """Whether `raw` says `harmless`; 1 is 1.0, but not true."""
    if len(raw) > MAX_FIELD_BYTES:
        return False
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _read_field(form: _Form, name: str, raw: bytes) -> Any:
    if len(raw) > MAX_FIELD_BYTES and name not in form.schema.large:
        raise bad_field(name, f"at most {MAX_FIELD_BYTES} bytes of JSON; got {len(raw)}")
    try:
        return form.readers[name](raw)
    except msgspec.ValidationError as error:
        raise explain(error, at=name) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise explain_unreadable(error, raw, at=name) from error
    except ValueError as error:
        raise bad_field(name, str(error)) from error
