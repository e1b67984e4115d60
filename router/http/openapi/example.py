"""An example of JSON of a type, made of its fields, so that it is never out of step with them.

What may be absent is absent, and null what may be null and has no value below.
"""

from typing import Any

from msgspec import inspect

_VALUES: dict[str, Any] = {
    "content": "Hello!",
    "text": "Hello!",
    "thinking": "A greeting.",
    "delta": "Hello",
    "parallel_tool_calls": True,
    "deleted": True,
    "ready": True,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "top_logprobs": 0,
    "server_load": 0,
    "service_tier": "default",
    "tool_choice": "auto",
    "prompt": "Hello!",
    "finish_reason": "stop",
    "stop_reason": "end_turn",
    "status": "completed",
    "role": "assistant",
    "name": "get_weather",
    "arguments": '{"city": "Ulm"}',
    "partial_json": '{"city":',
    "prompt_tokens": 9,
    "input_tokens": 9,
    "completion_tokens": 3,
    "output_tokens": 3,
    "total_tokens": 12,
    "cached_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "thinking_tokens": 0,
    "index": 0,
    "output_index": 0,
    "content_index": 0,
    "summary_index": 0,
    "sequence_number": 0,
    "embedding": [0.6, -0.8],
    "tokens": [9707],
    "created": 1767225600,
    "created_at": 1767225600,
    "version": "0.1.0",
    "owned_by": "baton",
    "max_model_len": 2048,
}
_IDS = {
    "ChatCompletion": "chatcmpl-7f3a",
    "ChatChunk": "chatcmpl-7f3a",
    "TextCompletion": "cmpl-7f3a",
    "ResponseShape": "resp_7f3a",
    "Deleted": "resp_7f3a",
    "MessageItem": "msg_7f3a_0",
    "MessageShape": "msg_7f3a",
    "AnsweredCall": "call_7f3a",
    "CallItem": "fc_7f3a_0",
    "SaidToolUse": "call_7f3a",
}
"""Type -> an id as it has one. Others are called as the model is."""


_TOLD = {"content", "usage", "prompt_tokens_details", "stop_reason"}
"""Of what may be null, what is not."""
_FILLED = {"choices", "data", "output", "content"}
"""Of lists, those that are not empty."""


def example_of(kind: Any, *, model: str) -> Any:
    """Of a union: of a piece of something, or of the first type that it names."""
    return _made(inspect.type_info(kind), "", {"model": model})


def _made(kind: inspect.Type, name: str, named: dict[str, Any]) -> Any:
    match kind:
        case inspect.StructType():
            return _struct(kind, named)
        case inspect.ListType(item_type=item):
            is_filled = name in _FILLED and isinstance(item, inspect.StructType | inspect.UnionType)
            return _value(kind, name, named, [_made(item, "", named)] if is_filled else [])
        case inspect.DictType():
            return {}
        case inspect.UnionType(types=types, includes_none=is_nullable):
            if is_nullable and name not in _TOLD:
                return None
            others = [one for one in types if not isinstance(one, inspect.NoneType)]
            first = next(filter(_is_piece, others), others[0])
            is_plain = is_nullable and type(first) in _PLAIN
            return _value(first, name, named, None) if is_plain else _made(first, name, named)
        case inspect.LiteralType(values=values):
            return _VALUES[name] if _VALUES.get(name) in values else values[0]
        case _:
            return _value(kind, name, named, _PLAIN.get(type(kind)))


def _struct(kind: inspect.StructType, named: dict[str, Any]) -> dict[str, Any]:
    known = named | {"id": _IDS.get(kind.cls.__name__, named["model"])}
    tagged = {} if kind.tag_field is None else {kind.tag_field: kind.tag}
    wanted = [one for one in kind.fields if one.required or one.name == "content"]
    return tagged | {one.encode_name: _made(one.type, one.encode_name, known) for one in wanted}


def _is_piece(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.StructType) and str(kind.tag).endswith("delta")


def _value(kind: inspect.Type, name: str, named: dict[str, Any], other: Any) -> Any:
    """What a field of this name has, if that is of its type."""
    value = (_VALUES | named).get(name)
    is_fitting = isinstance(value, _FITTING.get(type(kind), ()))
    return value if is_fitting else other


_PLAIN: dict[type, Any] = {
    inspect.StrType: "...",
    inspect.IntType: 1,
    inspect.FloatType: 1.0,
    inspect.BoolType: False,
    inspect.AnyType: {},
}
_FITTING: dict[type, type | tuple[type, ...]] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.BoolType: bool,
    inspect.FloatType: (int, float),
    inspect.ListType: list,
}
