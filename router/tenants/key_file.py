"""The file of API keys: JSON, `{"keys": [{"key" or "sha256", "tenant", ...}]}`.

Read as a whole or not at all: one wrong entry refuses all of them, by its place, and no error says
a key. Pure.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from router.tenants.api_key import ApiKey, key_digest

MAX_FILE_BYTES = 16 << 20
_Priority = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
_Most = Annotated[int, Meta(ge=1, le=10**12)]
_HEX = re.compile(r"[0-9a-fA-F]{64}")


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As of `ApiKey`."""

    tenant: Annotated[str, Meta(min_length=1, max_length=128)]
    key: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    sha256: str | None = None
    """Of the key's bytes, in hexadecimal: the file then opens nothing to whoever reads it."""
    weight: Annotated[float, Meta(ge=0.001, le=1000.0)] = 1.0
    priority: _Priority = 0
    most_urgent: _Priority | None = None
    """None: its own priority."""
    requests_per_minute: _Most | None = None
    tokens_per_minute: _Most | None = None
    max_in_flight: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    """RFC 3339, with a zone."""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: list[_Entry]


def read_keys(text: bytes) -> tuple[ApiKey, ...]:
    """ValueError naming the entry at fault, as `$.keys[2].weight`, and what it should be."""
    try:
        entries = msgspec.json.decode(text, type=_File).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    keys = [_terms(entry, f"$.keys[{index}]") for index, entry in enumerate(entries)]
    _check_alike(keys)
    return tuple(keys)


def _terms(entry: _Entry, place: str) -> ApiKey:
    most_urgent = entry.priority if entry.most_urgent is None else entry.most_urgent
    if most_urgent > entry.priority:
        rule = f"at most its `priority`, {entry.priority}: the lower, the more urgent"
        raise ValueError(f"{place}.most_urgent: {most_urgent}: {rule}")
    return ApiKey(
        digest=_digest(entry, place),
        tenant=entry.tenant,
        weight=entry.weight,
        priority=entry.priority,
        most_urgent=most_urgent,
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        max_in_flight=entry.max_in_flight,
        expires_at=None if entry.expires is None else entry.expires.timestamp(),
    )


def _digest(entry: _Entry, place: str) -> bytes:
    if (entry.key is None) == (entry.sha256 is None):
        raise ValueError(f"{place}: needs either `key` or `sha256`")
    if entry.key is not None:
        if not all("!" <= character <= "~" for character in entry.key):
            raise ValueError(f"{place}.key: must be printable ASCII without spaces")
        return key_digest(entry.key.encode())
    assert entry.sha256 is not None
    if not _HEX.fullmatch(entry.sha256):
        raise ValueError(f"{place}.sha256: must be 64 hexadecimal digits")
    return bytes.fromhex(entry.sha256)


def _check_alike(keys: Sequence[ApiKey]) -> None:
    """Each key once, and one weight for a tenant: it has one place in the queue."""
    seen = dict[bytes, int]()
    weights = dict[str, tuple[int, float]]()
    for index, key in enumerate(keys):
        first = seen.setdefault(key.digest, index)
        if first != index:
            raise ValueError(f"$.keys[{index}]: is the same key as $.keys[{first}]")
        first, weight = weights.setdefault(key.tenant, (index, key.weight))
        if weight != key.weight:
            raise ValueError(
                f"$.keys[{index}].weight: {key.weight:g}: $.keys[{first}] is of the same tenant and"
                f" says {weight:g}"
            )
