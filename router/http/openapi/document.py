"""The OpenAPI 3.1 document of a table of endpoints: types become JSON Schema by msgspec.

Of a request: what a client may send. Fields that are refused whatever their value have no place in
it; the parameters' own page lists them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from router.anthropic.errors import anthropic_error
from router.api.errors import ApiError, openai_error
from router.api.parsing import Schema
from router.http.openapi.endpoint import Endpoint
from router.http.openapi.example import example_of
from router.http.openapi.message_answers import MessageError
from router.http.openapi.openai_answers import ErrorAnswer
from router.http.openapi.read_fields import json_type

OPENAPI = "3.1.0"
NO_MODEL = "MODEL"
"""In examples, while none is served."""
_REF = "#/components/schemas/{name}"
_REFUSALS = {
    400: "A field is wrong, or asks for what this server does not do.",
    401: "The key is missing or wrong.",
    403: "The request comes from a page or for a host that may not.",
    404: "There is no such thing here.",
    408: "The body did not come, or the answer was not read, in time.",
    413: "The body is too large.",
    415: "The body is no JSON, or in a coding that is not known.",
    429: "There is no room now, or too much of it is this client's.",
    500: "The request failed in this server.",
    503: "No worker can serve this now.",
    504: "The request took longer than this server allows.",
}
_OF_ALL, _OF_BODIES = (401, 403, 500), (400, 404, 408, 413, 415, 429, 503, 504)
Json = dict[str, Any]


def make_document(endpoints: Sequence[Endpoint], *, models: Sequence[str], version: str) -> Json:
    """`models`: the names that requests may be for; examples are for the first."""
    model = models[0] if models else NO_MODEL
    requests = {one: _documented(one) for one in {each.request for each in endpoints} if one}
    types = [*requests.values(), *_types_of_answers(endpoints)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    of_type = dict(zip(map(id, types), schemas, strict=True))
    paths: dict[str, Json] = {}
    for one in endpoints:
        request = of_type[id(requests[one.request])] if one.request else None
        paths.setdefault(one.path, {})[one.method] = _operation(one, request, of_type, model=model)
    for name in {_name_of(schema) for schema in (of_type[id(each)] for each in requests.values())}:
        if "model" in components[name].get("properties", {}):
            names = {"enum": list(models)} if models else {}
            components[name]["properties"]["model"] = {"type": "string", **names}
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": OPENAPI,
        "info": {"title": "Baton", "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": keys},
        "security": [{name: []} for name in keys],
    }


def _types_of_answers(endpoints: Iterable[Endpoint]) -> list[Any]:
    types: list[Any] = [ErrorAnswer]
    for one in endpoints:
        named = (one.answer, one.to_anthropic, one.event, one.error)
        types += [each for each in named if each not in (None, str)]
    return list({id(each): each for each in types}.values())


def _operation(
    one: Endpoint, request: Json | None, of_type: Mapping[int, Json], *, model: str
) -> Json:
    operation: Json = {"summary": one.summary, "operationId": _operation_id(one)}
    if one.is_open:
        operation["security"] = []
    in_path = re.findall(r"\{(\w+)", one.path)
    in_query = [{"name": name, "in": "query", "schema": kind} for name, kind in one.query.items()]
    if parameters := [*map(_path_parameter, in_path), *in_query]:
        operation["parameters"] = parameters
    if one.request is not None:
        named = {"model": model} if "model" in one.request.__struct_fields__ else {}
        content: Json = {"schema": request, "example": {**named, **one.asked}}
        body = {"required": True, "content": {"application/json": content}}
        operation["requestBody"] = body
    operation["responses"] = {
        "200": {"description": "Success.", "content": _content(one, of_type, model=model)},
        **_refusals(one, of_type[id(one.error or ErrorAnswer)]),
    }
    return operation


def _content(one: Endpoint, of_type: Mapping[int, Json], *, model: str) -> Json:
    if one.answer is str:
        example = "# TYPE baton_requests_total counter"
        return {"text/plain": {"schema": {"type": "string"}, "example": example}}
    schema = of_type[id(one.answer)]
    if one.to_anthropic is not None:
        schema = {"anyOf": [schema, of_type[id(one.to_anthropic)]]}
    example = example_of(one.answer, model=model)
    content: Json = {"application/json": {"schema": schema, "example": example}}
    if one.event is not None:
        example = example_of(one.event, model=model)
        failure = of_type[id(one.error or ErrorAnswer)]
        events = {"anyOf": [of_type[id(one.event)], failure]}
        content["text/event-stream"] = {"schema": events, "example": example}
    return content


def _refusals(one: Endpoint, schema: Json) -> Json:
    statuses = {*one.statuses, *_OF_ALL, *(_OF_BODIES if one.request else ())}
    show_error = anthropic_error if one.error is MessageError else openai_error
    refusals: Json = {}
    for status in sorted(statuses - ({401} if one.is_open else set())):
        example = msgspec.json.decode(show_error(ApiError(status, _REFUSALS[status])))
        content = {"application/json": {"schema": schema, "example": example}}
        refusals[str(status)] = {"description": _REFUSALS[status], "content": content}
    return refusals


def _documented(schema: type[Schema]) -> type[Any]:
    """A type with the schema's fields as JSON may have them, null included."""
    fields: list[Any] = []
    for one in msgspec.structs.fields(schema):
        kind = json_type(schema, one.name) if one.name in schema.readers else one.type
        if one.required:
            fields.append((one.encode_name, kind))
        else:
            fields.append(
                (one.name, kind | None, msgspec.field(default=None, name=one.encode_name))
            )
    described = msgspec.defstruct(schema.__name__, fields, kw_only=True, forbid_unknown_fields=True)
    described.__doc__ = schema.__doc__
    return described


def _name_of(schema: Json) -> str:
    return str(schema["$ref"].rpartition("/")[2])


def _operation_id(one: Endpoint) -> str:
    return "_".join([one.method, *re.findall(r"\w+", one.path.replace(":path", ""))])


def _path_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
