"""Formats whose calls are written as Python writes them."""

from protocol.formats.table import CONTENT, END, OTHER, SHOWN, START, Format, Row, Takes, Written

_LIST = Written(begin="[", call="{name}({keywords})", between=", ", end="]")
_STATES = {**SHOWN, "open": Takes.SPACE, "list": Takes.LITERALS, "after": Takes.SPACE}
_ROWS = {
    ("open", "["): Row("list"),
    ("open", OTHER): Row(CONTENT),
    ("list", END): Row("after"),
    ("after", OTHER): Row(CONTENT),
}
PYTHONIC = Format(
    name="pythonic",
    states=_STATES,
    rows={
        **_ROWS,
        (START, "["): Row("list"),
        (CONTENT, "<|python_start|>"): Row("open"),
        ("after", "<|python_end|>"): Row(CONTENT),
    },
    written=_LIST,
    only_known=True,
)
"""Llama 4 and 3.2: a list that begins the answer."""


def tagged_calls(name: str, begin: str, end: str) -> Format:
    """The list between two tags."""
    return Format(
        name=name,
        states=_STATES,
        rows={
            **_ROWS,
            (CONTENT, begin): Row("open"),
            ("after", end): Row(CONTENT),
            ("open", end): Row(CONTENT),
        },
        written=Written(begin=f"{begin}[", call=_LIST.call, between=", ", end=f"]{end}"),
    )


LFM2 = tagged_calls("lfm2", "<|tool_call_start|>", "<|tool_call_end|>")

OLMO3 = Format(
    name="olmo3",
    states=_STATES,
    rows={
        (CONTENT, "<function_calls>"): Row("list"),
        ("list", END): Row("after"),
        ("list", "</function_calls>"): Row(CONTENT),
        ("after", "</function_calls>"): Row(CONTENT),
        ("after", OTHER): Row(CONTENT),
    },
    written=Written(
        begin="<function_calls>", call=_LIST.call, between="\n", end="</function_calls>"
    ),
)
