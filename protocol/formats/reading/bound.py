"""A format with the tokens of one tokeniser."""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.formats.reading.lexer import Terminals, terminals_of
from protocol.formats.table import OutputFormat
from protocol.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class MarkToken:
    """A token that is a terminal, or part of one."""

    literal: str
    shown: str
    """Its text where it is no terminal and no call is open."""
    is_part: bool = False
    """Text before it may go on with it to make a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundFormat:
    format: OutputFormat
    terminals: Mapping[str, Terminals]
    """By state, those that are text. Every state has some, if only none."""
    marks: Mapping[int, MarkToken]
    last_states: frozenset[str]
    """Those without rows."""


def bind(of: OutputFormat, tokenizer: Tokenizer) -> BoundFormat:
    tokens = tokenizer.added_tokens
    whole = of.terminals() & tokens.keys()
    of_text = "\0".join(of.terminals() - whole)
    parts = {text for text in tokens if len(text) > 2 and text.strip() and text in of_text}
    parts |= {*of.parts} & tokens.keys()
    marks = {}
    for text in sorted(whole | parts):
        token_id, is_part = tokens[text], text in parts
        if token_id < tokenizer.vocab_size:
            is_hidden = tokenizer.is_special(token_id) and not is_part
            marks[token_id] = MarkToken(text, "" if is_hidden else text, is_part)
    return BoundFormat(
        format=of,
        terminals=terminals_of(of, tokens),
        marks=marks,
        last_states=frozenset(of.states) - {state for state, _ in of.rows},
    )
