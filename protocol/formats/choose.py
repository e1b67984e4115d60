"""Which formats a checkpoint's outputs have: by its chat template and its tokens, or as told."""

from collections.abc import Mapping
from typing import TypeVar

from protocol.errors import SettingsError
from protocol.formats.formats import Formats
from protocol.formats.harmony import HARMONY
from protocol.formats.json_calls import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    HERMES,
    KIMI,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_LIST,
)
from protocol.formats.python_calls import LFM2, OLMO3, PYTHONIC
from protocol.formats.table import Format
from protocol.formats.tagged_lists import APRIEL, COHERE, NEMOTRON, PHI4
from protocol.formats.think import TAGS, ThinkTags
from protocol.formats.xml_calls import DEEPSEEK_V32, GLM, GLM_CLOSE, MINIMAX, QWEN3_CODER, SEED
from protocol.text.tokenizer import Tokenizer

T = TypeVar("T")
BY_TEMPLATE: tuple[tuple[Format, tuple[str, ...]], ...] = (
    (HARMONY, ("<|channel|>", "<|call|>")),
    (KIMI, ("<|tool_calls_section_begin|>",)),
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
BY_TOKENS: tuple[tuple[Format, tuple[str, ...]], ...] = (
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
    template = tokenizer.chat_template.source if tokenizer.chat_template else ""
    found = _tool_format(tools, template, tokenizer.added_tokens)
    has_own = found is not None and bool(found.headers)
    thinking = None if has_own else _think_tags(reasoning, template, tokenizer.added_tokens)
    return Formats(tokenizer, tools=found, thinking=thinking)


def _tool_format(name: str, template: str, tokens: Mapping[str, int]) -> Format | None:
    if name not in ("auto", "none"):
        return _named("tool_format", name, {of.name: of for of, _ in BY_TEMPLATE})
    if name == "none":
        return None
    fits = (of for of, has in BY_TEMPLATE if all(text in template for text in has))
    known = (of for of, has in BY_TOKENS if not template and tokens.keys() >= {*has})
    return next(fits, None) or next(known, None)


def _think_tags(name: str, template: str, tokens: Mapping[str, int]) -> ThinkTags | None:
    if name not in ("auto", "none"):
        return _named("reasoning_format", name, {tags.name: tags for tags in TAGS})
    if name == "none":
        return None
    written = (tags for tags in TAGS if tags.close in template)
    known = (tags for tags in TAGS if tags.open in tokens and tags.close in tokens)
    return next(written, None) or next(known, None)


def _named(setting: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        names = ", ".join(("auto", "none", *sorted(known)))
        raise SettingsError(f"{setting}: {name!r} is none of {names}")
    return known[name]
