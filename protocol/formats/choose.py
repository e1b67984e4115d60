"""Which formats a checkpoint's outputs have: by its chat template and its tokens, or as told."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from protocol.errors import SettingsError
from protocol.formats.families.harmony import HARMONY
from protocol.formats.families.json_calls import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    HERMES,
    KIMI,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_LIST,
)
from protocol.formats.families.python_calls import LFM2, OLMO3, PYTHONIC
from protocol.formats.families.response_template import NAME, calls_of, thoughts_of
from protocol.formats.families.tagged_lists import APRIEL, COHERE, NEMOTRON, PHI4
from protocol.formats.families.think import TAGS, ThinkTags
from protocol.formats.families.xml_calls import (
    DEEPSEEK_V32,
    GLM,
    GLM_CLOSE,
    KIMI_K3,
    MINIMAX,
    QWEN3_CODER,
    SEED,
)
from protocol.formats.formats import Formats
from protocol.formats.table import FormatError, OutputFormat
from protocol.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
T = TypeVar("T")
BY_TEMPLATE: tuple[tuple[OutputFormat, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|call|>")),
    (KIMI, ("<|tool_calls_section_begin|>",)),
    (KIMI_K3, ("<|open|>", "<|sep|>", "'tools'", "'argument'")),
    (DEEPSEEK_V3, ("<｜tool▁calls▁begin｜>", "```json")),
    (DEEPSEEK_V31, ("<｜tool▁calls▁begin｜>",)),
    (DEEPSEEK_V32, ("｜DSML｜",)),
    (MINIMAX, ("<minimax:tool_call>",)),
    (SEED, ("<seed:tool_call>",)),
    (QWEN3_CODER, ("<function=", "<parameter=")),
    (GLM_CLOSE, ("<arg_key>", "</arg_key><arg_value>")),
    (GLM, ("<arg_key>",)),
    (OLMO3, ("<function_calls>",)),
    (NEMOTRON, ("<TOOLCALL>",)),
    (PHI4, ("<|tool_call|>", "<|/tool_call|>")),
    (COHERE, ("<|START_ACTION|>",)),
    (APRIEL, ("<tool_calls>",)),
    (HERMES, ("<tool_call>",)),
    (MISTRAL, ("[TOOL_CALLS]", "[ARGS]")),
    (MISTRAL_LIST, ("[TOOL_CALLS]",)),
    (LFM2, ("<|tool_call_start|>",)),
    (PYTHONIC, ("<|python_start|>",)),
    (PYTHONIC, ("<|eot|>", "func_name1(")),
    (LLAMA3_JSON, ("<|python_tag|>", "parameters")),
    (LLAMA3_JSON, ("<|eot_id|>", "parameters")),
)
"""Formats and what a template has that writes them; the first that fits."""
BY_TOKENS: tuple[tuple[OutputFormat, tuple[str, ...]], ...] = (
    (DEEPSEEK_V32, ("｜DSML｜",)),
    (HARMONY, ("<|channel|>", "<|call|>")),
    (KIMI, ("<|tool_calls_section_begin|>",)),
    (MISTRAL, ("[TOOL_CALLS]", "[ARGS]")),
    (MISTRAL_LIST, ("[TOOL_CALLS]",)),
)
"""Published without a template too: what of them are tokens."""


def choose_formats(
    tokenizer: Tokenizer, *, tools: str = "auto", reasoning: str = "auto"
) -> Formats:
    """`auto`, `none` or a name of each. SettingsError lists the names."""
    found = _tool_format(tools, tokenizer)
    has_own = found is not None and bool(found.headers)
    thinking = None if has_own else _think_tags(reasoning, tokenizer)
    return Formats(tokenizer, tools=found, thinking=thinking)


def check_formats(*, tools: str, reasoning: str) -> None:
    """SettingsError for a name that is no format's, whatever the checkpoint."""
    always: Mapping[str, None] = dict.fromkeys(("auto", "none", NAME))
    _named("tool_format", tools, {**always, **{of.name: None for of, _ in BY_TEMPLATE}})
    _named("reasoning_format", reasoning, {**always, **{tags.name: None for tags in TAGS}})


def _tool_format(name: str, tokenizer: Tokenizer) -> OutputFormat | None:
    """A format known here reads more than the checkpoint's own table says."""
    if name == "none":
        return None
    own = _own(calls_of, tokenizer)
    if name != "auto":
        known = {of.name: of for of, _ in BY_TEMPLATE} | ({NAME: own} if own else {})
        return _named("tool_format", name, known)
    template, tokens = _written(tokenizer), tokenizer.added_tokens.keys()
    fits = (of for of, has in BY_TEMPLATE if all(text in template for text in has))
    known_by_tokens = (of for of, has in BY_TOKENS if not template and tokens >= {*has})
    return next(fits, None) or own or next(known_by_tokens, None)


def _think_tags(name: str, tokenizer: Tokenizer) -> ThinkTags | None:
    if name == "none":
        return None
    own = _own(thoughts_of, tokenizer)
    if name != "auto":
        known = {tags.name: tags for tags in TAGS} | ({own.name: own} if own else {})
        return _named("reasoning_format", name, known)
    template, tokens = _written(tokenizer), tokenizer.added_tokens
    written = (tags for tags in TAGS if _writes(template, tags))
    by_tokens = (tags for tags in TAGS if tags.open in tokens and tags.close in tokens)
    return next(written, None) or own or next(by_tokens, None)


def _writes(template: str, tags: ThinkTags) -> bool:
    """Tags that consist of tokens are put together from their name."""
    named = re.fullmatch(r"<\|close\|>(\w+)<\|sep\|>", tags.close)
    return tags.close in template or bool(
        named and "<|close|>" in template and f"'{named[1]}'" in template
    )


def _written(tokenizer: Tokenizer) -> str:
    """All that the checkpoint says of how it writes."""
    template = tokenizer.chat_template.source if tokenizer.chat_template else ""
    own = tokenizer.response_template
    return template + ("" if own is None else json.dumps(own, ensure_ascii=False))


def _own(read: Callable[[Mapping[str, Any]], T | None], tokenizer: Tokenizer) -> T | None:
    template = tokenizer.response_template
    try:
        return read(template) if isinstance(template, Mapping) else None
    except (ValueError, FormatError) as error:
        log.info("response template not used", extra={"why": str(error)})
        return None


def _named(setting: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        names = ", ".join(("auto", "none", *sorted(known.keys() - {"auto", "none"})))
        raise SettingsError(f"{setting}: {name!r} is none of {names}")
    return known[name]
