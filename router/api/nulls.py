"""Null under any name means that it was not given: for bodies whose types know no such name."""

from typing import Any

import msgspec

MAX_STRIPPED = 1 << 20
"""Bytes of JSON in which nulls are looked for: as values they take ten times as much."""


def decode_without_nulls(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """As `decoder` decodes, with nulls left out if they are in its way: those of objects in lists,
    and of objects in lists of these."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        if len(raw) > MAX_STRIPPED or not str(error).startswith("Object contains unknown field"):
            raise
        return decoder.decode(msgspec.json.encode(_without_nulls(msgspec.json.decode(raw))))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(one) if isinstance(one, dict) else one for one in value]
    if isinstance(value, dict):
        given = ((name, one) for name, one in value.items() if one is not None)
        return {name: _without_nulls(one) if isinstance(one, list) else one for name, one in given}
    return value
