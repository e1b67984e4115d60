"""What a request wants its answer to be a text of, by all the names in use, as one grammar.

OpenAI's `response_format`; vLLM's `structured_outputs` and its older `guided_...`; SGLang's
`json_schema`, `regex`, `ebnf`; llama.cpp's `json_schema`, `grammar`. A schema is enforced whether
or not it is called strict, and may be any that the grammar can hold an answer to, not only of those
that OpenAI calls strict. A strict one lets no object have properties that it does not speak of.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.text.structured.grammars import (
    STYLE,
    WHITESPACE,
    JsonStyle,
    blanks,
    choice_grammar,
    client_grammar,
    json_grammar,
    regex_grammar,
)
from protocol.text.structured.limits import SchemaError, UnsupportedKeyword
from router.api.errors import bad_field, unsupported_field
from router.api.parsing import Schema

Label = Annotated[str, Meta(max_length=256)]
"""Asks for nothing."""
Note = Annotated[str, Meta(max_length=16 << 10)]
"""For the model; none of ours is shown it."""
Choices = Annotated[tuple[str, ...], Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object within a field."""


class NamedSchema(_Part, frozen=True, kw_only=True):
    name: Label | None = None
    description: Note | None = None
    schema: Any = None
    strict: bool | None = None


class ResponseFormat(_Part, frozen=True, kw_only=True):
    """OpenAI's. `schema` beside `json_object` is llama.cpp's and others'."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None
    schema: Any = None


class StructuredOutputs(_Part, frozen=True, kw_only=True):
    """vLLM's."""

    json: Any = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    disable_fallback: bool = False
    """A hint about vLLM's libraries, as the next."""
    backend: Label | None = None


class StructuredFields(Schema, frozen=True, kw_only=True):
    """What chat and completions have of it."""

    response_format: ResponseFormat = ResponseFormat()
    structured_outputs: StructuredOutputs = StructuredOutputs()
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: Label | None = None
    json_schema: Any = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None


def answer_grammar(fields: StructuredFields) -> str | None:
    """As `protocol.messages.Grammar.text`; None: any text will do. Raises ApiError 400."""
    wishes = _wishes(fields)
    given = [at for at, (value, _) in wishes.items() if value is not None]
    if len(given) > 1:
        raise bad_field(given[1], f"not together with {given[0]}")
    style = _style(fields, is_json=any(wishes[at][1] in (_json, _strict_json) for at in given))
    for at in given:
        value, make = wishes[at]
        return make(value, at, style)
    return None


def schema_grammar(schema: object, *, param: str, style: JsonStyle = STYLE) -> str:
    """Of documents valid by a JSON Schema that stands at `param`. Raises ApiError 400, which names
    the keyword at fault."""
    try:
        return json_grammar(schema, style)
    except UnsupportedKeyword as error:
        raise unsupported_field(f"{param}.{error.path}") from error
    except SchemaError as error:
        at = f"{param}.{error.path}".removesuffix(".")
        raise bad_field(at, error.rule) from error


def _wishes(fields: StructuredFields) -> dict[str, "tuple[Any, _Make]"]:
    """Path -> what stands there, and how it becomes a grammar."""
    vllm = fields.structured_outputs
    return {
        **_of_format(fields.response_format),
        "structured_outputs.json": (vllm.json, _json),
        "structured_outputs.regex": (vllm.regex, _regex),
        "structured_outputs.choice": (vllm.choice, _choice),
        "structured_outputs.grammar": (vllm.grammar, _grammar),
        "structured_outputs.json_object": ({} if vllm.json_object else None, _json),
        "guided_json": (fields.guided_json, _json),
        "guided_regex": (fields.guided_regex, _regex),
        "guided_choice": (fields.guided_choice, _choice),
        "guided_grammar": (fields.guided_grammar, _grammar),
        "json_schema": (fields.json_schema, _json),
        "regex": (fields.regex, _regex),
        "ebnf": (fields.ebnf, _grammar),
        "grammar": (fields.grammar, _grammar),
    }


def _of_format(given: ResponseFormat) -> dict[str, "tuple[Any, _Make]"]:
    at = "response_format"
    match given:
        case ResponseFormat(type="json_schema", json_schema=None):
            raise bad_field(f"{at}.json_schema", "required")
        case ResponseFormat(type="json_schema", json_schema=NamedSchema() as named, schema=None):
            make = _strict_json if named.strict else _json
            schema = {} if named.schema is None else named.schema
            return {f"{at}.json_schema.schema": (schema, make)}
        case ResponseFormat(type="json_object", json_schema=None, schema=schema):
            where = f"{at}.schema" if schema is not None else at
            return {where: ({} if schema is None else schema, _json)}
        case ResponseFormat(type="text", json_schema=None, schema=None):
            return {}
        case _:
            name = "schema" if given.schema is not None else "json_schema"
            raise bad_field(f"{at}.{name}", f"not allowed when type is {given.type}")


def _style(fields: StructuredFields, *, is_json: bool) -> JsonStyle:
    vllm = fields.structured_outputs
    patterns = {
        "structured_outputs.whitespace_pattern": vllm.whitespace_pattern,
        "guided_whitespace_pattern": fields.guided_whitespace_pattern,
    }
    space: str | None = None if vllm.disable_any_whitespace else WHITESPACE
    for at, pattern in patterns.items():
        if pattern is None:
            continue
        if space != WHITESPACE:
            raise bad_field(at, "how white space is written is said twice")
        if not is_json:
            raise bad_field(at, "only of JSON")
        try:
            space = blanks(pattern)
        except ValueError as error:
            raise bad_field(at, str(error)) from error
    return JsonStyle(whitespace=space or None, closed=vllm.disable_additional_properties)


_Make = Callable[[Any, str, JsonStyle], str]


def _json(value: Any, at: str, style: JsonStyle) -> str:
    """A schema, or the text of one, as vLLM and SGLang take it."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise bad_field(at, "is no JSON") from error
    return schema_grammar(value, param=at, style=style)


def _strict_json(value: Any, at: str, style: JsonStyle) -> str:
    return _json(value, at, replace(style, closed=True))


def _regex(value: str, at: str, style: JsonStyle) -> str:
    return _refused(at, regex_grammar, value)


def _choice(value: tuple[str, ...], at: str, style: JsonStyle) -> str:
    return _refused(at, choice_grammar, value)


def _grammar(value: str, at: str, style: JsonStyle) -> str:
    return _refused(at, client_grammar, value)


def _refused(at: str, make: Callable[[Any], str], value: Any) -> str:
    try:
        return make(value)
    except ValueError as error:
        raise bad_field(at, str(error)) from error
