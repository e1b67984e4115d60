"""A request of `/v1/responses` to a generation. Between its two steps earlier responses are looked
up, which waits for Redis: `read_request`, `wanted_ids`, `prepare_response`.

The first and the last may take a while: no work for the event loop. Every mistake of the client
ends here, as an `ApiError` naming the field.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from protocol.ids import RequestId
from protocol.store.responses import KeptResponse, ResponseStore
from router.api.errors import ApiError, bad_field
from router.api.generation import MAX_ALTERNATIVES
from router.api.model_choice import Choose
from router.api.parsing import parse_body
from router.api.shown import shown
from router.openai.prepare import prepare_conversation
from router.responses.conversation import conversation_of
from router.responses.items import InputItem, input_shapes, read_items
from router.responses.recent import RecentAnswers
from router.responses.response_generation import ResponseGeneration, as_response
from router.responses.schemas import ResponseRequest
from router.responses.shapes import response_id, response_of_item
from router.responses.told import told_of
from router.runtime import Runtime

MAX_REFERRED = 256
"""Responses that the items of one input may refer to: an agent's steps."""
NO_PREVIOUS = "previous_response_not_found"
_PREVIOUS = "previous_response_id"


class _KeptShape(msgspec.Struct):
    model: str | None = None


_KEPT = msgspec.json.Decoder(_KeptShape)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundResponses:
    """What is known of responses, by their ids."""

    kept: Mapping[str, KeptResponse]
    recent: Mapping[str, bytes]
    """JSON of the items of answers that were not to be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where one client's responses are kept."""

    store: ResponseStore
    recent: RecentAnswers
    owner: str
    by_default: bool
    """Also those of requests that do not say."""


def read_request(body: bytes) -> ResponseRequest:
    fields = parse_body(ResponseRequest, body)
    if not fields.input and fields.previous_response_id is None:
        raise bad_field("input", "required")
    num_alternatives = 0 if fields.num_logprobs is None else 1 + fields.num_logprobs
    if (fields.max_output_tokens or 0) * num_alternatives > MAX_ALTERNATIVES:
        raise too_many_logprobs()
    return fields


def too_many_logprobs() -> ApiError:
    """400, known before or after: all are kept until the end, of a stream too."""
    rule = f"times (1 + top_logprobs) at most {MAX_ALTERNATIVES}; got more"
    return bad_field("max_output_tokens", rule)


def wanted_ids(fields: ResponseRequest) -> tuple[str, ...]:
    """Of the responses that the request refers to, each once."""
    ids = dict.fromkeys((fields.previous_response_id,) if fields.previous_response_id else ())
    for index, item in enumerate(fields.input):
        if item.kind == "item_reference":
            ids[_referred(item, index)[0]] = None
            if len(ids) > MAX_REFERRED:
                raise bad_field("input", f"items of at most {MAX_REFERRED} responses")
    return tuple(ids)


def prepare_response(
    runtime: Runtime,
    fields: ResponseRequest,
    found: FoundResponses,
    keeping: Keeping | None,
    request: RequestId,
    choose: Choose,
) -> ResponseGeneration:
    """`found`: what is known of `wanted_ids`. Raises ApiError, and what `choose` does."""
    items, paths = _all_items(fields, found)
    conversation = conversation_of(fields, items, paths)
    chosen = choose(fields.model or _previous_model(fields, found))
    generation = prepare_conversation(runtime, conversation, request, chosen)
    token = secrets.token_hex(24)
    is_kept = keeping is not None and (keeping.by_default if fields.store is None else fields.store)
    is_remembered = keeping is not None and not is_kept and fields.store is None
    return as_response(
        generation,
        id=response_id(token),
        token=token,
        told=told_of(fields, generation, response_id(token)),
        as_summary=fields.reasoning.as_summary,
        store=keeping.store if keeping is not None and is_kept else None,
        recent=keeping.recent if keeping is not None and is_remembered else None,
        owner="" if keeping is None else keeping.owner,
        items=msgspec.json.encode(input_shapes(items, token)) if is_kept else b"",
    )


def _all_items(
    fields: ResponseRequest, found: FoundResponses
) -> tuple[Sequence[InputItem], Sequence[str]]:
    """What is continued, then what was sent; and where in the body each is."""
    items: list[InputItem] = []
    if fields.previous_response_id is not None:
        items += _continued(fields.previous_response_id, found)
    paths = [_PREVIOUS] * len(items)
    outputs: dict[str, Sequence[InputItem]] = {}
    for index, item in enumerate(fields.input):
        is_reference = item.kind == "item_reference"
        items.append(_looked_up(item, index, found, outputs) if is_reference else item)
        paths.append(f"input[{index}]")
    return items, paths


def _previous_model(fields: ResponseRequest, found: FoundResponses) -> str | None:
    """Who is to go on with what names no model itself."""
    kept = found.kept.get(fields.previous_response_id or "")
    return None if kept is None else _KEPT.decode(kept.response).model


def _continued(previous: str, found: FoundResponses) -> list[InputItem]:
    kept = found.kept.get(previous)
    if kept is None:
        message = (
            f"Previous response with id '{shown(previous)}' not found: it was not to be kept"
            " (`store`), is no more, or is another key's."
        )
        raise ApiError(404, message, param=_PREVIOUS, code=NO_PREVIOUS)
    return [*read_items(kept.items), *_output(previous, found)]


def _output(response: str, found: FoundResponses) -> Sequence[InputItem]:
    """Items of an answer; none of one that is not known."""
    if (kept := found.kept.get(response)) is None:
        return read_items(found.recent.get(response, b"[]"))
    return read_items(msgspec.json.decode(kept.response, type=dict[str, msgspec.Raw])["output"])


def _referred(item: InputItem, index: int) -> tuple[str, int]:
    where = response_of_item(item.id or "")
    if where is None:
        raise _no_item(item, index)
    return where


def _looked_up(
    item: InputItem, index: int, found: FoundResponses, outputs: dict[str, Sequence[InputItem]]
) -> InputItem:
    """`outputs`: of responses that were referred to before, each read once."""
    response, number = _referred(item, index)
    if response not in outputs:
        outputs[response] = _output(response, found)
    if number >= len(outputs[response]):
        raise _no_item(item, index)
    return outputs[response][number]


def _no_item(item: InputItem, index: int) -> ApiError:
    message = f"input[{index}].id: Item with id '{shown(item.id or '')}' not found."
    return ApiError(404, message, param=f"input[{index}].id", code="item_not_found")
