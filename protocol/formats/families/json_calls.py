"""Formats whose calls have JSON arguments."""

from collections.abc import Mapping

from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    ROLES,
    SHOWN,
    START,
    OutputFormat,
    Takes,
    Transition,
    Written,
)


def tagged_objects(
    name: str, begin: str, end: str, *, roles: Mapping[str, str] = ROLES
) -> OutputFormat:
    """Each call between two tags."""
    return OutputFormat(
        name=name,
        states={**SHOWN, "call": Takes.ENVELOPE, "after": Takes.SPACE},
        rows={
            (CONTENT, begin): Transition("call"),
            ("call", END): Transition("after"),
            ("call", end): Transition(CONTENT),
            ("after", end): Transition(CONTENT),
            ("after", begin): Transition("call"),
            ("after", OTHER): Transition(CONTENT),
        },
        written=Written(call=f"{begin}\n{{envelope}}\n{end}", between="\n"),
        roles=roles,
    )


HERMES = tagged_objects("hermes", "<tool_call>", "</tool_call>")
"""Qwen 2.5 and 3, Hermes and many others."""

LLAMA3_JSON = OutputFormat(
    name="llama3_json",
    states={**SHOWN, "call": Takes.ENVELOPE, "after": Takes.SPACE},
    rows={
        (CONTENT, "<|python_tag|>"): Transition("call"),
        (START, "{"): Transition("call", stays=True),
        ("call", END): Transition("after"),
        ("after", "{"): Transition("call", stays=True),
        ("after", "<|python_tag|>"): Transition("call"),
        ("after", OTHER): Transition(CONTENT),
    },
    written=Written(call="{envelope}", between="; "),
    roles={"name": "name", "parameters": "arguments", **ROLES},
    only_known=True,
)
"""Llama 3.1 to 3.3: an object that begins the answer."""

MISTRAL = OutputFormat(
    name="mistral",
    states={
        **SHOWN,
        "calls": Takes.SPACE,
        "list": Takes.SPACE,
        "item": Takes.ENVELOPE,
        "name": Takes.NAME,
        "id": Takes.SKIP,
        "arguments": Takes.ARGUMENTS,
        "after": Takes.SPACE,
    },
    rows={
        (CONTENT, "[TOOL_CALLS]"): Transition("calls"),
        ("calls", "["): Transition("list"),
        ("calls", "{"): Transition("item", stays=True),
        ("calls", OTHER): Transition("name"),
        ("list", "{"): Transition("item", stays=True),
        ("list", "]"): Transition("after"),
        ("list", OTHER): Transition(CONTENT),
        ("item", END): Transition("list"),
        ("item", "[TOOL_CALLS]"): Transition("calls"),
        ("list", "[TOOL_CALLS]"): Transition("calls"),
        ("name", "[ARGS]"): Transition("arguments"),
        ("name", "[CALL_ID]"): Transition("id"),
        ("name", "{"): Transition("arguments", stays=True),
        ("id", "[ARGS]"): Transition("arguments"),
        ("id", "{"): Transition("arguments", stays=True),
        ("arguments", END): Transition("after"),
        ("arguments", "[TOOL_CALLS]"): Transition("calls"),
        ("after", "[TOOL_CALLS]"): Transition("calls"),
        ("after", OTHER): Transition(CONTENT),
    },
    written=Written(call="[TOOL_CALLS]{name}[ARGS]{arguments}"),
    ids="nine",
)
"""From version 11 on, and the lists of the versions before."""

_LISTED = Written(begin="[TOOL_CALLS] [", call="{envelope}", between=", ", end="]")
MISTRAL_LIST = MISTRAL.replace(name="mistral_list", written=_LISTED)
"""Versions 3 to 7. Read alike, written otherwise."""

_CALLS, _CALL, _SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_CALL_END, _CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
_SECTION = {
    (CONTENT, _CALLS): Transition("section"),
    ("section", _CALLS_END): Transition(CONTENT),
    ("section", OTHER): Transition(CONTENT),
    ("section", _CALL_END): Transition("section"),
    ("arguments", END): Transition("section"),
    ("arguments", _CALL_END): Transition("section"),
    ("arguments", _CALLS_END): Transition(CONTENT),
}
DEEPSEEK_V3 = OutputFormat(
    name="deepseek_v3",
    states={
        **SHOWN,
        "section": Takes.SPACE,
        "type": Takes.SKIP,
        "name": Takes.NAME,
        "arguments": Takes.ARGUMENTS,
    },
    rows={
        **_SECTION,
        ("section", _CALL): Transition("type"),
        ("type", _SEP): Transition("name"),
        ("type", _CALL_END): Transition("section"),
        ("name", "\n```json\n"): Transition("arguments"),
        ("name", _CALL_END): Transition("section"),
        ("arguments", _CALL): Transition("type"),
    },
    written=Written(
        begin=_CALLS,
        call=f"{_CALL}function{_SEP}{{name}}\n```json\n{{arguments}}\n```{_CALL_END}",
        between="\n",
        end=_CALLS_END,
    ),
)
"""DeepSeek V3 and R1."""

DEEPSEEK_V31 = OutputFormat(
    name="deepseek_v31",
    states={
        **SHOWN,
        "section": Takes.SPACE,
        "name": Takes.NAME,
        "arguments": Takes.ARGUMENTS,
    },
    rows={
        **_SECTION,
        ("section", _CALL): Transition("name"),
        ("name", _SEP): Transition("arguments"),
        ("name", _CALL_END): Transition("section"),
        ("arguments", _CALL): Transition("name"),
    },
    written=Written(
        begin=_CALLS,
        call=f"{_CALL}{{name}}{_SEP}{{arguments}}{_CALL_END}",
        end=_CALLS_END,
    ),
)

KIMI = OutputFormat(
    name="kimi",
    states={
        **SHOWN,
        "section": Takes.SPACE,
        "id": Takes.ID,
        "arguments": Takes.ARGUMENTS,
    },
    rows={
        (CONTENT, "<|tool_calls_section_begin|>"): Transition("section"),
        ("section", "<|tool_call_begin|>"): Transition("id"),
        ("section", "<|tool_call_end|>"): Transition("section"),
        ("section", "<|tool_calls_section_end|>"): Transition(CONTENT),
        ("section", OTHER): Transition(CONTENT),
        ("id", "<|tool_call_argument_begin|>"): Transition("arguments"),
        ("id", "<|tool_call_end|>"): Transition("section"),
        ("arguments", END): Transition("section"),
        ("arguments", "<|tool_call_end|>"): Transition("section"),
        ("arguments", "<|tool_calls_section_end|>"): Transition(CONTENT),
    },
    written=Written(
        begin="<|tool_calls_section_begin|>",
        call="<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
    ),
    ids="written",
)
"""Kimi K2."""
