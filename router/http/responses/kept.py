"""Responses that were kept: found, shown, listed item by item, deleted. Each is its owner's alone,
which is an API key, or the tenant of one: who has another is told that there is none."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protocol.errors import CapacityError, StoreError
from protocol.store.responses import KeptResponse
from router.api.errors import ApiError, as_api_error, bad_field, unsupported_field
from router.api.shown import shown
from router.http.admission import Share
from router.http.generate import AppState
from router.http.middleware import client_of
from router.responses.prepare import FoundResponses, Keeping
from router.responses.recent import MAX_BYTES, RecentAnswers
from router.runtime import Runtime
from router.tenants.client import Client

MAX_LISTED, DEFAULT_LISTED = 100, 20
"""Items of one answer, as in OpenAI's API."""
RETRY_AFTER_S = 1.0
Query = Mapping[str, str]
Show = Callable[[KeptResponse, Query], bytes]
"""What of a kept response is asked for, as JSON. Raises ApiError. May take a while."""


def new_recent_answers(runtime: Runtime) -> RecentAnswers:
    return RecentAnswers(max_bytes=MAX_BYTES, num_owners=lambda: runtime.num_owners)


def keeping_of(state: AppState, client: Client) -> Keeping | None:
    """Where the responses of `client` are kept; None: nowhere."""
    policy = state.runtime.kept_responses
    if policy is None:
        return None
    return Keeping(
        store=policy.store, recent=state.recent, owner=client.owner, by_default=policy.by_default
    )


async def find_responses(
    keeping: Keeping | None, ids: Sequence[str], room: Share
) -> FoundResponses:
    """What is known of `ids`; `room` grows by what is read. CapacityError when there is no room,
    ApiError 503 when Redis cannot be asked."""
    if keeping is None or not ids:
        return FoundResponses(kept={}, recent={})
    store, owner = keeping.store, keeping.owner
    recent = keeping.recent.find(owner, ids, now=asyncio.get_running_loop().time())
    others = [ident for ident in ids if ident not in recent]
    kept: Sequence[KeptResponse | None] = ()
    if others:
        with _store_errors():
            room.widen(room.num + await store.num_bytes(owner, others))
            kept = await store.find(owner, others)
    known = {ident: one for ident, one in zip(others, kept, strict=True) if one is not None}
    return FoundResponses(kept=known, recent=recent)


class KeptAnswer(Response):
    """Made while it is sent: until then what was kept takes the room of a body, and a seat."""

    def __init__(self, state: AppState, ident: str, query: Query, show: Show) -> None:
        super().__init__()
        self._state = state
        self._ident = ident
        self._query = query
        self._show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, client = self._state, client_of(scope)
        try:
            with state.seats.share(client.name) as seats, state.bodies.share(client.name) as room:
                seats.widen(1)
                found = await find_responses(keeping_of(state, client), [self._ident], room)
                if (kept := found.kept.get(self._ident)) is None:
                    raise _not_found(self._ident)
                body = await state.run_in_thread(self._show, kept, self._query)
                await Response(body, media_type="application/json")(scope, receive, send)
                state.trimming.count(room.num)
        except CapacityError as error:
            raise as_api_error(error) from error


def whole_response(kept: KeptResponse, query: Query) -> bytes:
    """As it was answered. Its events are not kept."""
    if query.get("stream") not in (None, "false"):
        raise unsupported_field("stream", "of a kept response is")
    return kept.response


def not_cancelled(kept: KeptResponse, query: Query) -> bytes:
    """Only what runs in the background could be, and nothing does."""
    message = "Only responses in the background can be cancelled, and this server makes none."
    raise ApiError(400, message, code="not_in_background")


def input_items(kept: KeptResponse, query: Query) -> bytes:
    """What it was made from, that of earlier responses too; the newest first unless told."""
    limit, order = _limit(query), query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_field("order", "must be asc or desc")
    items = msgspec.json.decode(kept.items, type=list[dict[str, msgspec.Raw]])
    if order == "desc":
        items.reverse()
    names = [msgspec.json.decode(item["id"], type=str) for item in items]
    start = 0
    if (after := query.get("after")) is not None:
        if after not in names:
            raise bad_field("after", "no such item")
        start = names.index(after) + 1
    page = names[start : start + limit]
    told: dict[str, Any] = {
        "object": "list",
        "data": items[start : start + limit],
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
        "has_more": start + limit < len(items),
    }
    return msgspec.json.encode(told)


async def delete_response(keeping: Keeping | None, ident: str) -> Response:
    """Responses that went on from it keep what they took of it."""
    with _store_errors():
        was_kept = keeping is not None and await keeping.store.delete(keeping.owner, ident)
    if not was_kept:
        raise _not_found(ident)
    told = {"id": ident, "object": "response", "deleted": True}
    return Response(msgspec.json.encode(told), media_type="application/json")


def _limit(query: Query) -> int:
    given = query.get("limit", str(DEFAULT_LISTED))
    number = int(given) if given.isascii() and given.isdecimal() and len(given) < 10 else 0
    if not 1 <= number <= MAX_LISTED:
        raise bad_field("limit", f"1 to {MAX_LISTED}")
    return number


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
