"""Renders a checkpoint's chat template: messages to prompt text, as transformers would.

The template comes with the checkpoint and runs in a sandbox whose use of time and memory is
metered; it sees plain JSON values only. Does not tokenise.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from protocol.errors import CheckpointError
from protocol.text.template.content_parts import PartsUse, parts_use
from protocol.text.template.files import TemplateSource, special_tokens, template_sources
from protocol.text.template.final_message import begin_final, end_in_final
from protocol.text.template.sandbox import Environment
from protocol.text.text_bounds import TextTooLong

MIN_CHARS = 1 << 22
"""What a template may build on the way, however little fits: tools are long, their use is short."""
MAX_CHARS = 1 << 24
"""The most where no bound is given."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of one field of a message: templates read the first, or the second."""


class ChatTemplate:
    """The compiled templates of a checkpoint and the special tokens they may name."""

    def __init__(
        self,
        source: str | TemplateSource,
        *,
        special_tokens: Mapping[str, str],
        for_tools: TemplateSource | None = None,
    ) -> None:
        """`for_tools` is used instead when tools are given. CheckpointError names the file."""
        self._environment = _environment()
        source = TemplateSource(source) if isinstance(source, str) else source
        self._plain = _Compiled(self._environment, source)
        self._for_tools = _Compiled(self._environment, for_tools) if for_tools else self._plain
        self._special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in source.text
        """False: instructions of the role `developer` must be given as `system`."""
        self.variables = self._plain.variables | self._for_tools.variables
        """Names of all that it reads."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        max_chars: int = MAX_CHARS,
        **variables: Any,
    ) -> str:
        """The prompt, of `max_chars` characters at most; with `continue_final` up to the end of the
        last message's content. A content is a text or a list of text parts. Raises ValueError when
        the template refuses these messages or takes too much."""
        given = {"tools": None, "documents": None, **self._special_tokens, **variables}
        compiled = self._plain if given["tools"] is None else self._for_tools
        pieces: list[str] = []
        try:
            shown = [_message(message, compiled.parts) for message in messages]
            begun = begin_final(shown[-1]) if continue_final else None
            given |= {"messages": shown, "add_generation_prompt": add_generation_prompt}
            with self._environment.metered(max(MIN_CHARS, max_chars)) as meter:
                for piece in compiled.template.generate(given):
                    pieces.append(piece)
                    meter.step(len(piece))
        except Exception as error:  # whatever code that came with a checkpoint may raise
            why = str(error)[:500] or type(error).__name__
            raise ValueError(f"messages: the chat template refused them: {why}") from error
        if sum(map(len, pieces)) > max_chars:
            raise TextTooLong(f"messages: the chat has more than {max_chars} characters")
        text = "".join(pieces)
        return text if begun is None else end_in_final(text, begun)


class _Compiled:
    def __init__(self, environment: Environment, source: TemplateSource) -> None:
        where = f"{source.file}: chat template" if source.file else "chat template"
        try:
            with environment.metered(MAX_CHARS):
                tree = environment.parse(source.text)
                self.parts = parts_use(tree)
                self.variables = frozenset(name.name for name in tree.find_all(nodes.Name))
                self.template = environment.from_string(source.text)
        except (jinja2.TemplateSyntaxError, SyntaxError) as error:
            raise CheckpointError(f"{where}, line {error.lineno}: {error}") from error
        except (MemoryError, RecursionError, ValueError) as error:
            raise CheckpointError(f"{where}: {str(error) or type(error).__name__}") from error


def load_chat_template(path: Path, *, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of the checkpoint in `path`; None when it has none."""
    found = template_sources(path, tokenizer_config)
    sources = {name: source for name, source in found.items() if source.text}
    source = sources.get("default") or sources.get("tool_use")
    if not source:
        return None
    tokens = special_tokens(path, tokenizer_config)
    return ChatTemplate(source, special_tokens=tokens, for_tools=sources.get("tool_use"))


def _message(given: Mapping[str, Any], use: PartsUse) -> dict[str, Any]:
    """As transformers shows it: no nulls, and its reasoning under each name templates read."""
    message = {key: value for key, value in given.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    content = message.get("content")
    if isinstance(content, list) and use is PartsUse.NONE:
        message["content"] = "\n".join(part["text"] for part in content)
    if isinstance(content, str) and use is PartsUse.ONLY:
        message["content"] = [{"type": "text", "text": content}]
    return message


def _environment() -> Environment:
    environment = Environment()
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


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
