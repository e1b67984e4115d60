"""Tags around reasoning: which there are, and a format's table with them."""

from collections.abc import Container
from dataclasses import dataclass

from protocol.formats.table import (
    CONTENT,
    ORIGINS,
    REASONING,
    SHOWN,
    START,
    OutputFormat,
    Transition,
)


@dataclass(frozen=True, slots=True)
class ThinkTags:
    name: str
    open: str
    close: str


TAGS = (
    ThinkTags("think", "<think>", "</think>"),
    ThinkTags("seed_think", "<seed:think>", "</seed:think>"),
    ThinkTags("magistral", "[THINK]", "[/THINK]"),
    ThinkTags("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkTags("kimi_think", "◁think▷", "◁/think▷"),
    ThinkTags("kimi_k3", "<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ThinkTags("apriel", "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ThinkTags("thinking", "<thinking>", "</thinking>"),
    ThinkTags("thought", "<thought>", "</thought>"),
)
PLAIN = OutputFormat(name="none", states=SHOWN, rows={})
"""All is content."""
PROMPT = OutputFormat(name="prompt", states=SHOWN, rows={})
"""The beginning of an answer as a prompt has it, after the name of its role."""


def without_calls(of: OutputFormat) -> OutputFormat:
    """What reads reasoning alone, where the format itself has it."""
    headers = [(pattern, state) for pattern, state in of.headers if state in SHOWN]
    return of.replace(headers=headers) if headers else PLAIN


def with_thinking(of: OutputFormat, tags: ThinkTags, tokens: Container[str]) -> OutputFormat:
    """Its table and the tags. `tokens`: terminals that are tokens of their own: these open a call
    within reasoning too; a tag that is text opens reasoning only where an answer begins."""
    opens = CONTENT if tags.open in tokens or of is PROMPT else START
    rows = dict(of.rows)
    rows |= {(opens, tags.open): Transition(REASONING), (REASONING, tags.close): Transition(START)}
    if tags.open in tokens:
        rows[REASONING, tags.open] = Transition(REASONING)
    if tags.close in tokens:
        rows[CONTENT, tags.close] = Transition(CONTENT)
    for (state, terminal), row in of.rows.items():
        if state == CONTENT and terminal in tokens and of.states[row.to] not in ORIGINS:
            rows[REASONING, terminal] = row
    return of.replace(name=f"{of.name}+{tags.name}", rows=rows)
