"""Formats whose calls are a JSON list between two tags."""

from collections.abc import Mapping

from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    REASONING,
    ROLES,
    SHOWN,
    OutputFormat,
    Takes,
    Transition,
    Written,
)


def tagged_list(
    name: str,
    begin: str,
    end: str,
    *,
    answer: tuple[str, str] | None = None,
    roles: Mapping[str, str] = ROLES,
) -> OutputFormat:
    """`answer`: tags around what is no call."""
    rows = {
        (CONTENT, begin): Transition("list"),
        ("list", "["): Transition("list"),
        ("list", "{"): Transition("item", stays=True),
        ("list", end): Transition(CONTENT),
        ("list", begin): Transition("list"),
        ("list", OTHER): Transition(CONTENT),
        ("item", END): Transition("list"),
        ("item", end): Transition(CONTENT),
    }
    for tag in answer or ():
        rows |= {(CONTENT, tag): Transition(CONTENT), (REASONING, tag): Transition(CONTENT)}
    return OutputFormat(
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
