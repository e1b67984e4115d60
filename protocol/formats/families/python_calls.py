"""Formats whose calls are written as Python writes them."""

from protocol.formats.table import (
    CONTENT,
    END,
    OTHER,
    SHOWN,
    START,
    OutputFormat,
    Takes,
    Transition,
    Written,
)

_LIST = Written(begin="[", call="{name}({keywords})", between=", ", end="]")
_STATES = {**SHOWN, "open": Takes.SPACE, "list": Takes.LITERALS, "after": Takes.SPACE}
_ROWS = {
    ("open", "["): Transition("list"),
    ("open", OTHER): Transition(CONTENT),
    ("list", END): Transition("after"),
    ("after", OTHER): Transition(CONTENT),
}
PYTHONIC = OutputFormat(
    name="pythonic",
    states=_STATES,
    rows={
        **_ROWS,
        (START, "["): Transition("list"),
        (CONTENT, "<|python_start|>"): Transition("open"),
        ("after", "<|python_end|>"): Transition(CONTENT),
    },
    written=_LIST,
    only_known=True,
)
"""Llama 4 and 3.2: a list that begins the answer."""


def tagged_calls(name: str, begin: str, end: str) -> OutputFormat:
    """The list between two tags."""
    return OutputFormat(
        name=name,
        states=_STATES,
        rows={
            **_ROWS,
            (CONTENT, begin): Transition("open"),
            ("after", end): Transition(CONTENT),
            ("open", end): Transition(CONTENT),
        },
        written=Written(begin=f"{begin}[", call=_LIST.call, between=", ", end=f"]{end}"),
    )


LFM2 = tagged_calls("lfm2", "<|tool_call_start|>", "<|tool_call_end|>")

OLMO3 = OutputFormat(
    name="olmo3",
    states=_STATES,
    rows={
        (CONTENT, "<function_calls>"): Transition("list"),
        ("list", END): Transition("after"),
        ("list", "</function_calls>"): Transition(CONTENT),
        ("after", "</function_calls>"): Transition(CONTENT),
        ("after", OTHER): Transition(CONTENT),
    },
    written=Written(
        begin="<function_calls>", call=_LIST.call, between="\n", end="</function_calls>"
    ),
)
