"""gpt-oss: messages whose header says their channel, and their recipient where they are calls."""

from protocol.formats.table import (
    CONTENT,
    END,
    REASONING,
    SHOWN,
    OutputFormat,
    Takes,
    Transition,
    Written,
)

_ENDS = {
    (state, terminal): Transition("header")
    for state in (CONTENT, REASONING, "after", "arguments")
    for terminal in ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
}
HARMONY = OutputFormat(
    name="harmony",
    states={**SHOWN, "header": Takes.HEADER, "arguments": Takes.ARGUMENTS, "after": Takes.SKIP},
    rows={
        **_ENDS,
        ("header", "<|message|>"): Transition(CONTENT),
        ("header", "<|start|>"): Transition("header"),
        ("arguments", END): Transition("after"),
    },
    initial="header",
    headers=(
        (r"to=functions\.(?P<name>[^\s<]+)", "arguments"),
        (r"<\|channel\|>analysis|^analysis", REASONING),
        (r"", CONTENT),
    ),
    written=Written(
        call="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"
        "<|call|>",
        lead=(
            "<|channel|>analysis<|message|>{text}<|end|><|start|>assistant",
            "<|channel|>commentary<|message|>{text}<|end|><|start|>assistant",
        ),
        answer="<|channel|>final<|message|>{text}",
    ),
    restarts="<|start|>",
    parts=("<|channel|>", "<|constrain|>"),
)
