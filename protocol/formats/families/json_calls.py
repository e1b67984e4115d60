"""Formats whose calls have JSON arguments."""

from collections.abc import Mapping

from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    ROLES,
    SHOWN,
    START,
    Format,
    Row,
    Takes,
    Written,
)


def tagged_objects(name: str, begin: str, end: str, *, roles: Mapping[str, str] = ROLES) -> Format:
    """Each call between two tags."""
    return Format(
        name=name,
        states={**SHOWN, "call": Takes.ENVELOPE, "after": Takes.SPACE},
        rows={
            (CONTENT, begin): Row("call"),
            ("call", END): Row("after"),
            ("call", end): Row(CONTENT),
            ("after", end): Row(CONTENT),
            ("after", begin): Row("call"),
            ("after", OTHER): Row(CONTENT),
        },
        written=Written(call=f"{begin}\n{{envelope}}\n{end}", between="\n"),
        roles=roles,
    )


HERMES = tagged_objects("hermes", "<tool_call>", "</tool_call>")
"""Qwen 2.5 and 3, Hermes and many others."""

LLAMA3_JSON = Format(
    name="llama3_json",
    states={**SHOWN, "call": Takes.ENVELOPE, "after": Takes.SPACE},
    rows={
        (CONTENT, "<|python_tag|>"): Row("call"),
        (START, "{"): Row("call", stays=True),
        ("call", END): Row("after"),
        ("after", "{"): Row("call", stays=True),
        ("after", "<|python_tag|>"): Row("call"),
        ("after", OTHER): Row(CONTENT),
    },
    written=Written(call="{envelope}", between="; "),
    roles={"name": "name", "parameters": "arguments", **ROLES},
    only_known=True,
)
"""Llama 3.1 to 3.3: an object that begins the answer."""

MISTRAL = Format(
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
        (CONTENT, "[TOOL_CALLS]"): Row("calls"),
        ("calls", "["): Row("list"),
        ("calls", "{"): Row("item", stays=True),
        ("calls", OTHER): Row("name"),
        ("list", "{"): Row("item", stays=True),
        ("list", "]"): Row("after"),
        ("list", OTHER): Row(CONTENT),
        ("item", END): Row("list"),
        ("item", "[TOOL_CALLS]"): Row("calls"),
        ("list", "[TOOL_CALLS]"): Row("calls"),
        ("name", "[ARGS]"): Row("arguments"),
        ("name", "[CALL_ID]"): Row("id"),
        ("name", "{"): Row("arguments", stays=True),
        ("id", "[ARGS]"): Row("arguments"),
        ("id", "{"): Row("arguments", stays=True),
        ("arguments", END): Row("after"),
        ("arguments", "[TOOL_CALLS]"): Row("calls"),
        ("after", "[TOOL_CALLS]"): Row("calls"),
        ("after", OTHER): Row(CONTENT),
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
    (CONTENT, _CALLS): Row("section"),
    ("section", _CALLS_END): Row(CONTENT),
    ("section", OTHER): Row(CONTENT),
    ("section", _CALL_END): Row("section"),
    ("arguments", END): Row("section"),
    ("arguments", _CALL_END): Row("section"),
    ("arguments", _CALLS_END): Row(CONTENT),
}
DEEPSEEK_V3 = Format(
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
        ("section", _CALL): Row("type"),
        ("type", _SEP): Row("name"),
        ("type", _CALL_END): Row("section"),
        ("name", "\n```json\n"): Row("arguments"),
        ("name", _CALL_END): Row("section"),
        ("arguments", _CALL): Row("type"),
    },
    written=Written(
        begin=_CALLS,
        call=f"{_CALL}function{_SEP}{{name}}\n```json\n{{arguments}}\n```{_CALL_END}",
        between="\n",
        end=_CALLS_END,
    ),
)
"""DeepSeek V3 and R1."""

DEEPSEEK_V31 = Format(
    name="deepseek_v31",
    states={
        **SHOWN,
        "section": Takes.SPACE,
        "name": Takes.NAME,
        "arguments": Takes.ARGUMENTS,
    },
    rows={
        **_SECTION,
        ("section", _CALL): Row("name"),
        ("name", _SEP): Row("arguments"),
        ("name", _CALL_END): Row("section"),
        ("arguments", _CALL): Row("name"),
    },
    written=Written(
        begin=_CALLS,
        call=f"{_CALL}{{name}}{_SEP}{{arguments}}{_CALL_END}",
        end=_CALLS_END,
    ),
)

KIMI = Format(
    name="kimi",
    states={
        **SHOWN,
        "section": Takes.SPACE,
        "id": Takes.ID,
        "arguments": Takes.ARGUMENTS,
    },
    rows={
        (CONTENT, "<|tool_calls_section_begin|>"): Row("section"),
        ("section", "<|tool_call_begin|>"): Row("id"),
        ("section", "<|tool_call_end|>"): Row("section"),
        ("section", "<|tool_calls_section_end|>"): Row(CONTENT),
        ("section", OTHER): Row(CONTENT),
        ("id", "<|tool_call_argument_begin|>"): Row("arguments"),
        ("id", "<|tool_call_end|>"): Row("section"),
        ("arguments", END): Row("section"),
        ("arguments", "<|tool_call_end|>"): Row("section"),
        ("arguments", "<|tool_calls_section_end|>"): Row(CONTENT),
    },
    written=Written(
        begin="<|tool_calls_section_begin|>",
        call="<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
    ),
    ids="written",
)
"""Kimi K2."""
