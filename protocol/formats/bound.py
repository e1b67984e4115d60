"""A format with the tokens of one tokeniser."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.formats.lexer import Terminals, terminals_of
from protocol.formats.table import Format
from protocol.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Mark:
    """A token that is a terminal, or part of one."""

    literal: str
    shown: str
    """Its text where it is no terminal and no call is open."""
    is_part: bool = False
    """Text before it may go on with it to make a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundFormat:
    format: Format
    terminals: Mapping[str, Terminals]
    """By state, those that are text. Every state has some, if only none."""
    marks: Mapping[int, Mark]
    last_states: frozenset[str]
    """Those without rows."""


def bind(of: Format, tokenizer: Tokenizer) -> BoundFormat:
    tokens = tokenizer.added_tokens
    marks = {}
    for text in sorted(of.terminals() | set(of.parts)):
        if (token_id := tokens.get(text)) is not None:
            is_part = text in of.parts
            is_hidden = tokenizer.is_special(token_id) and not is_part
            marks[token_id] = Mark(text, "" if is_hidden else text, is_part)
    return BoundFormat(
        format=of,
        terminals=terminals_of(of, tokens),
        marks=marks,
        last_states=frozenset(of.states) - {state for state, _ in of.rows},
    )
