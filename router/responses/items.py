"""The items that a response is made from, and the turns of a chat that they are.

Also as they were answered, because clients send answers back. An item of another kind is refused by
its name: what it says cannot be shown to a model here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.errors import bad_field
from router.api.nulls import decode_without_nulls
from router.openai.turns import Call, Turn, call_arguments

Text = Literal["input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"]
Kind = Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"]


class InputPart(msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True):
    """A text. What it has besides was answered to somebody, or is a hint."""

    type: Text
    text: str | None = None
    refusal: str | None = None
    annotations: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    logprobs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parsed: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cache_control: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt_cache_breakpoint: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


Parts = str | list[InputPart]


class InputItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of any kind; which fields it must have is checked by `turns_of`. A field of type None is
    one that Baton does not support."""

    type: Kind | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    call_id: Annotated[str, Meta(max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=1024)] | None = None
    arguments: str | None = None
    output: Parts | None = None
    summary: list[InputPart] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    encrypted_content: str | None = None
    """Nobody here encrypts reasoning: not read."""
    parsed_arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    caller: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    created_by: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    namespace: None = None

    @property
    def kind(self) -> Kind:
        """A message need not say that it is one, nor a reference."""
        if self.type is None and self.role is None and self.content is None and self.id is not None:
            return "item_reference"
        return self.type or "message"


_items = msgspec.json.Decoder(list[InputItem])
_input = msgspec.json.Decoder(str | list[InputItem])


def read_input(raw: bytes) -> tuple[InputItem, ...]:
    """A text is a user's. Null under any name is not read."""
    given = decode_without_nulls(_input, raw)
    if isinstance(given, str):
        return (InputItem(type="message", role="user", content=given),)
    if not given:
        raise ValueError("has no items; at least one is needed")
    return tuple(given)


def read_items(raw: bytes) -> tuple[InputItem, ...]:
    """Items as `input_shapes` or an answer has them."""
    return tuple(_items.decode(raw))


def input_shapes(items: Sequence[InputItem], token: str) -> list[dict[str, Any]]:
    """As they are kept and listed; `read_items` reads it. No two ids are equal: those given twice,
    and those not given, are made of `token`."""
    shapes: dict[str, dict[str, Any]] = {}
    for index, item in enumerate(items):
        ident = item.id if item.id and item.id not in shapes else f"{token}_in{index}"
        shapes[ident] = _input_shape(item, ident)
    return list(shapes.values())


def turns_of(items: Sequence[InputItem], paths: Sequence[str]) -> tuple[Turn, ...]:
    """As a chat: an assistant's reasoning, text and calls that follow each other are one turn.
    `paths`: of each item in its client's body. Raises ApiError 400 for what an item lacks."""
    return tuple(_turns(items, paths))


def _turns(items: Sequence[InputItem], paths: Sequence[str]) -> Iterator[Turn]:
    called: dict[str, str] = {}
    answer: _Answer | None = None
    for item, path in zip(items, paths, strict=True):
        kind = item.kind
        if kind in ("reasoning", "function_call") or item.role == "assistant":
            if answer is not None and not answer.goes_on_with(kind):
                yield answer.turn()
                answer = None
            answer = answer or _Answer(path)
            answer.add(item, path, called)
            continue
        if answer is not None:
            yield answer.turn()
            answer = None
        yield _asked(item, path, called)
    if answer is not None:
        yield answer.turn()


class _Answer:
    """A turn of the assistant's as its items come."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reasoning: list[str] = []
        self._content: tuple[str, ...] | str | None = None
        self._calls: list[Call] = []

    def goes_on_with(self, kind: Kind) -> bool:
        """Models think, speak and call, in that order."""
        return kind == "function_call" or (self._content is None and not self._calls)

    def add(self, item: InputItem, path: str, called: dict[str, str]) -> None:
        match item.kind:
            case "reasoning":
                self._reasoning += _texts(item.content or item.summary or [], f"{path}.content")
            case "function_call":
                call_id, name = _needed(item, path, "call_id"), _needed(item, path, "name")
                called[call_id] = name
                arguments = call_arguments(_needed(item, path, "arguments"))
                self._calls.append(Call(id=call_id, name=name, arguments=arguments))
            case _:
                self._content = _content(item.content, f"{path}.content")

    def turn(self) -> Turn:
        no_text = None if self._calls else ""
        return Turn(
            path=self._path,
            role="assistant",
            content=no_text if self._content is None else self._content,
            reasoning="\n".join(self._reasoning) or None,
            calls=tuple(self._calls),
        )


def _asked(item: InputItem, path: str, called: Mapping[str, str]) -> Turn:
    if item.kind == "function_call_output":
        call_id = _needed(item, path, "call_id")
        content = _content(item.output, f"{path}.output")
        name = item.name or called.get(call_id)
        return Turn(path=path, role="tool", content=content, call_id=call_id, name=name)
    assert item.kind == "message", "references were looked up before"
    if item.role is None:
        raise bad_field(f"{path}.role", "required")
    return Turn(path=path, role=item.role, content=_content(item.content, f"{path}.content"))


def _needed(item: InputItem, path: str, name: Literal["call_id", "name", "arguments"]) -> str:
    value: str | None = getattr(item, name)
    if value is None:
        raise bad_field(f"{path}.{name}", "required")
    return value


def _content(parts: Parts | None, path: str) -> str | tuple[str, ...]:
    if parts is None:
        raise bad_field(path, "required")
    return parts if isinstance(parts, str) else tuple(_texts(parts, path))


def _texts(parts: Parts, path: str) -> Iterator[str]:
    if isinstance(parts, str):
        yield parts
        return
    for index, part in enumerate(parts):
        name = "refusal" if part.type == "refusal" else "text"
        text: str | None = getattr(part, name)
        if text is None:
            raise bad_field(f"{path}[{index}].{name}", "required")
        yield text


def _input_shape(item: InputItem, ident: str) -> dict[str, Any]:
    kind = item.kind
    told: dict[str, Any] = {"id": ident, "type": kind, "status": "completed"}
    match kind:
        case "message":
            said = "output_text" if item.role == "assistant" else "input_text"
            return told | {"role": item.role, "content": _parts_shape(item.content, said)}
        case "function_call":
            called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            return told | called
        case "function_call_output":
            output = item.output
            shown = output if isinstance(output, str) else _parts_shape(output, "input_text")
            return told | {"call_id": item.call_id, "output": shown}
        case _:
            summary = _parts_shape(item.summary, "summary_text")
            thoughts = _parts_shape(item.content, "reasoning_text")
            return told | {"summary": summary, "content": thoughts}


def _parts_shape(parts: Parts | None, kind: str) -> list[dict[str, Any]]:
    """Every part as a text of `kind`; those of an answer have annotations."""
    more: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
    return [{"type": kind, "text": text, **more} for text in _texts(parts or [], "")]
