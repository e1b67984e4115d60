"""Responses that were kept: found, listed item by item, deleted. Each is its owner's alone: who
has another API key is told that there is none."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.responses import Response

from protocol.errors import StoreError
from protocol.store.responses import KeptResponse
from router.api.errors import ApiError, bad_field, unsupported_field
from router.api.explain import shown
from router.responses.prepare import Found, Keeping
from router.runtime import Runtime

MAX_LISTED, DEFAULT_LISTED = 100, 20
"""Items of one answer, as in OpenAI's API."""
RETRY_AFTER_S = 1.0


def keeping_of(runtime: Runtime, client: str) -> Keeping | None:
    """Where the responses of `client`, as `client_of` names it, are kept; None: nowhere."""
    policy = runtime.kept_responses
    if policy is None:
        return None
    owner = "all"
    if runtime.api_keys:
        key = runtime.api_keys[int(client.removeprefix("key "))]
        owner = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Keeping(store=policy.store, owner=owner, by_default=policy.by_default)


async def find_responses(keeping: Keeping | None, ids: Sequence[str]) -> Found:
    """Those of `ids` that are kept. ApiError 503 when Redis cannot be asked."""
    if keeping is None or not ids:
        return {}
    with _store_errors():
        kept = await keeping.store.find(keeping.owner, ids)
    return {ident: one for ident, one in zip(ids, kept, strict=True) if one is not None}


async def show_response(keeping: Keeping | None, ident: str, query: Mapping[str, str]) -> Response:
    """As it was answered. Its events are not kept."""
    if query.get("stream") not in (None, "false"):
        raise unsupported_field("stream", "of a kept response is")
    return _json((await _kept(keeping, ident)).response)


async def delete_response(keeping: Keeping | None, ident: str) -> Response:
    """Responses that went on from it keep what they took of it."""
    with _store_errors():
        was_kept = keeping is not None and await keeping.store.delete(keeping.owner, ident)
    if not was_kept:
        raise _not_found(ident)
    told = {"id": ident, "object": "response", "deleted": True}
    return _json(msgspec.json.encode(told))


async def cancel_response(keeping: Keeping | None, ident: str) -> Response:
    """Only what runs in the background could be, and nothing does."""
    await _kept(keeping, ident)
    message = "Only responses in the background can be cancelled, and this server makes none."
    raise ApiError(400, message, code="not_in_background")


async def list_input_items(
    keeping: Keeping | None, ident: str, query: Mapping[str, str]
) -> Response:
    """What it was made from, that of earlier responses too; the newest first unless told."""
    limit, order = _limit(query), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_field("order", "must be asc or desc")
    kept = await _kept(keeping, ident)
    items = msgspec.json.decode(kept.items, type=list[dict[str, msgspec.Raw]])
    if order == "desc":
        items.reverse()
    names = [msgspec.json.decode(item["id"], type=str) for item in items]
    start = 0
    if (after := query.get("after")) is not None:
        if after not in names:
            raise bad_field("after", "no such item")
        start = names.index(after) + 1
    names, items = names[start:], items[start:]
    told: dict[str, Any] = {
        "object": "list",
        "data": items[:limit],
        "first_id": names[0] if names else None,
        "last_id": names[:limit][-1] if names else None,
        "has_more": len(items) > limit,
    }
    return _json(msgspec.json.encode(told))


def _limit(query: Mapping[str, str]) -> int:
    given = query.get("limit", str(DEFAULT_LISTED))
    number = int(given) if given.isascii() and given.isdecimal() and len(given) < 10 else 0
    if not 1 <= number <= MAX_LISTED:
        raise bad_field("limit", f"1 to {MAX_LISTED}")
    return number


async def _kept(keeping: Keeping | None, ident: str) -> KeptResponse:
    found = await find_responses(keeping, [ident])
    if ident not in found:
        raise _not_found(ident)
    return found[ident]


def _not_found(ident: str) -> ApiError:
    message = f"Response with id '{shown(ident)}' not found."
    return ApiError(404, message, param="response_id", code="response_not_found")


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        message = "Kept responses cannot be read now; try again."
        raise ApiError(
            503, message, code="store_unavailable", retry_after_s=RETRY_AFTER_S
        ) from error


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
