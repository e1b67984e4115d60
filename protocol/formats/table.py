"""A format as a table: states, what each takes text as, and the terminals that lead between them.

Terminals are literal texts; where the tokeniser has one as a token of its own, that token alone
counts and its spelling in other tokens is text (`lexer.py`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Literal

from protocol.errors import BatonError


class Takes(Enum):
    """What a state does with text that is no terminal of its."""

    CONTENT = auto()
    REASONING = auto()
    SPACE = auto()
    """Between calls: space and closing brackets go, any other text is `OTHER`."""
    SKIP = auto()
    """Nothing: it belongs to a call, or is punctuation of the format."""
    NAME = auto()
    """The name of a call, whole when a terminal comes."""
    ID = auto()
    """A name with a number, `functions.f:0`, which is the call's id."""
    HEADER = auto()
    """Of a message of gpt-oss: channel and recipient, by which `headers` has the state after it."""
    ENVELOPE = auto()
    """A JSON object of a name and arguments, until its end."""
    ARGUMENTS = auto()
    """The JSON object of a call's arguments, until its end."""
    LITERALS = auto()
    """Calls as Python writes them, `[f(a=1), g()]`, until the list's end."""
    PARAMETERS = auto()
    """Between the parameters of a call."""
    KEY = auto()
    """A parameter's name, whole when a terminal comes."""
    TYPED = auto()
    """A parameter's value as text, of the type that the tool's schema says."""
    STRING = auto()
    """A parameter's value, a string whatever the schema says."""
    JSON = auto()
    """A parameter's value as JSON."""


OUTSIDE = frozenset({Takes.CONTENT, Takes.REASONING, Takes.SPACE, Takes.HEADER})
"""No call is open there: arriving at one ends the call."""
ORIGINS = frozenset({Takes.CONTENT, Takes.REASONING})
"""Where text goes that looked like a call and was none."""
BEGINNINGS = frozenset({Takes.NAME, Takes.ID, Takes.ENVELOPE})
"""A call begins there."""
VALUES = frozenset({Takes.TYPED, Takes.STRING, Takes.JSON})
CAPTURED = frozenset({Takes.NAME, Takes.ID, Takes.HEADER, Takes.KEY})
START, CONTENT, REASONING = "start", "content", "reasoning"
"""`start`: content of which there is none yet; it has the rows of `content` too."""
SHOWN: Mapping[str, Takes] = {
    START: Takes.CONTENT,
    CONTENT: Takes.CONTENT,
    REASONING: Takes.REASONING,
}
ROLES = {
    **dict.fromkeys(("name", "function", "tool_name"), "name"),
    **dict.fromkeys(("arguments", "parameters"), "arguments"),
}
"""Keys of envelopes as models write them."""
END = "\0end"
"""The terminal of a state whose text says by itself where it ends."""
OTHER = "\0other"
"""The terminal of a state that takes space alone: some other text, which is not consumed."""
CallIds = Literal["openai", "written", "nine"]
"""`call_` and 24 letters, as the model writes it, or Mistral's nine letters."""


@dataclass(frozen=True, slots=True)
class Transition:
    to: str
    stays: bool = False
    """The terminal is not consumed: the next state begins with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How the checkpoint's template writes calls, which is what a grammar asks for. Slots are
    `{name}`, `{id}`, `{envelope}`, `{arguments}`, `{parameters}`, `{keywords}`; all other text is
    literal."""

    call: str
    begin: str = ""
    between: str = ""
    end: str = ""
    parameter: str = ""
    """Of `{parameters}`: one of them, with `{key}` and `{value}`, perhaps `{is_string}` or `{type}`
    of it."""
    lead: tuple[str, ...] = ()
    """Messages, with a `{text}`, that may come before."""
    answer: str = "{text}"
    """What is no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """Either of tools, or of reasoning, or (gpt-oss) of both. `rows` are checked when made."""

    name: str
    states: Mapping[str, Takes]
    rows: Mapping[tuple[str, str], Transition]
    initial: str = START
    ids: CallIds = "openai"
    written: Written | None = None
    only_known: bool = False
    """A call of an unknown name is content: the format's opening is not distinct."""
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    """Keys of an envelope, and whether they have the name or the arguments; of either the first is
    what the template writes."""
    trim_lines: bool = False
    """One line break at either end of a typed value is not part of it."""
    parts: Sequence[str] = ()
    """Of a header, besides text."""
    headers: Sequence[tuple[str, str]] = ()
    """Patterns of a header, and the state after it; `name` is a group of a call's."""
    restarts: str = ""
    """The terminal that begins a message: what the prompt has after the last one counts."""

    def __post_init__(self) -> None:
        states = self.states
        for (state, terminal), row in self.rows.items():
            if state not in states or row.to not in states:
                raise FormatError(f"{self.name}: ({state}, {terminal!r}) -> {row.to}: no state")
        for _, state in self.headers:
            if state not in states:
                raise FormatError(f"{self.name}: a header leads to {state}: no state")

    def replace(self, **changes: Any) -> "OutputFormat":
        return replace(self, **changes)

    def row(self, state: str, terminal: str) -> Transition | None:
        row = self.rows.get((state, terminal))
        return self.rows.get((CONTENT, terminal)) if row is None and state == START else row

    def after_header(self, header: str) -> str:
        """The state after a header."""
        return next(state for pattern, state in self.headers if re.search(pattern, header))

    def name_in_header(self, header: str) -> str | None:
        """Of the call whose arguments the message is; None: it is none."""
        found = (re.search(pattern, header) for pattern, _ in self.headers)
        first = next(match for match in found if match)
        return first.groupdict().get("name")

    def restarts_in(self, header: str) -> bool:
        """Whether there is more to a header than text."""
        return any(terminal in header for terminal in (self.restarts, *self.parts) if terminal)

    def terminals(self) -> frozenset[str]:
        return frozenset(text for _, text in self.rows if text not in (END, OTHER))


class FormatError(BatonError):
    """A table that makes no sense."""
