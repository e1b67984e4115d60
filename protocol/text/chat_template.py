"""Renders a checkpoint's chat template: messages to prompt text, as transformers would.

The template comes with the checkpoint and runs in jinja2's immutable sandbox; it sees plain JSON
values only. Does not tokenise.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import CheckpointError
from protocol.text.text_config import read_json_object_if_there

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """One compiled template and the special tokens it may name."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"chat template, line {error.lineno}: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in source
        """False: instructions of the role `developer` must be given as `system`."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt. Raises ValueError when the template refuses these messages."""
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(f"messages: the chat template refused them: {error}") from error


def load_chat_template(path: Path, *, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of the checkpoint in `path`; None when it has none."""
    file = path / "chat_template.jinja"
    if file.is_file():
        source = _read(file)
    else:
        source = _default_template(path, tokenizer_config.get("chat_template"))
    if not source:
        return None
    return ChatTemplate(source, special_tokens=special_tokens(path, tokenizer_config))


def special_tokens(path: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... as text; those the checkpoint lacks are absent."""
    map_file = path / "special_tokens_map.json"
    named = read_json_object_if_there(map_file)
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        file = "tokenizer_config.json" if tokenizer_config.get(name) else map_file.name
        if token := token_text(path / file, name, tokenizer_config.get(name) or named.get(name)):
            found[name] = token
    return found


def token_text(file: Path, name: str, token: object) -> str:
    """A special token as a checkpoint's file gives it, alone or with options; "" for none."""
    text: Any = token.get("content") if isinstance(token, dict) else token
    if text and not isinstance(text, str):
        raise CheckpointError(f"{file}: {name} is {text!r}, not a text")
    return text or ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def _default_template(path: Path, given: object) -> str:
    match given:
        case None:
            return ""
        case str():
            return given
        case list():
            for entry in given:
                match entry:
                    case {"name": "default", "template": str(source)}:
                        return source
                    case {"name": str(), "template": str()}:
                        continue
                    case _:
                        raise _no_template(path, entry)
            return ""
        case _:
            raise _no_template(path, given)


def _no_template(path: Path, given: object) -> CheckpointError:
    shown = repr(given)[:100]
    return CheckpointError(f"{path / 'tokenizer_config.json'}: chat_template has {shown}")


class _GenerationTag(Extension):
    """`{% generation %}`: transformers uses it to mark what a model said; we only render it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, it does not escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
