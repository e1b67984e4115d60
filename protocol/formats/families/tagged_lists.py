"""Formats whose calls are a JSON list between two tags."""

from collections.abc import Mapping

from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    REASONING,
    ROLES,
    SHOWN,
    Format,
    Row,
    Takes,
    Written,
)


def tagged_list(
    name: str,
    begin: str,
    end: str,
    *,
    answer: tuple[str, str] | None = None,
    roles: Mapping[str, str] = ROLES,
) -> Format:
    """`answer`: tags around what is no call."""
    rows = {
        (CONTENT, begin): Row("list"),
        ("list", "["): Row("list"),
        ("list", "{"): Row("item", stays=True),
        ("list", end): Row(CONTENT),
        ("list", begin): Row("list"),
        ("list", OTHER): Row(CONTENT),
        ("item", END): Row("list"),
        ("item", end): Row(CONTENT),
    }
    for tag in answer or ():
        rows |= {(CONTENT, tag): Row(CONTENT), (REASONING, tag): Row(CONTENT)}
    return Format(
        name=name,
        states={**SHOWN, "list": Takes.SPACE, "item": Takes.ENVELOPE},
        rows=rows,
        written=Written(
            begin=f"{begin}[",
            call="{envelope}",
            between=", ",
            end=f"]{end}",
            answer="{text}".join(answer) if answer else "{text}",
        ),
        roles=roles,
    )


NEMOTRON = tagged_list("nemotron", "<TOOLCALL>", "</TOOLCALL>")
PHI4 = tagged_list("phi4", "<|tool_call|>", "<|/tool_call|>")
APRIEL = tagged_list("apriel", "<tool_calls>", "</tool_calls>")
"""Jamba too."""
COHERE = tagged_list(
    "cohere",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    roles={"tool_name": "name", "parameters": "arguments"},
)
