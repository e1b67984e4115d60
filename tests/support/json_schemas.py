"""JSON Schemas with documents that fit and that do not, a validator of another make, and walks.

A walk is an output by chance: each token is any that the grammar allows, those that bring an end
nearer more often.
"""

import json
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from jsonschema import FormatChecker
from jsonschema.validators import validator_for
from support.constrained import tiny_tokenizer, tiny_vocabulary

from protocol.text.grammar import Matcher

FILE = Path(__file__).parents[1] / "unit/protocol/text/structured/json_schemas.json"
CLOSERS = ('"', "}", "]", '"}', "]}", "}}", '"]')


def _formats() -> FormatChecker:
    """What jsonschema by itself checks only beside other packages."""

    def is_date_time(text: object) -> bool:
        return not isinstance(text, str) or datetime.fromisoformat(text).tzinfo is not None

    def is_time(text: object) -> bool:
        return not isinstance(text, str) or time.fromisoformat(text).tzinfo is not None

    checker = FormatChecker()
    for name, check in {"date-time": is_date_time, "time": is_time}.items():
        checker.checks(name, raises=ValueError)(check)
    return checker


FORMATS = _formats()


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    schema: Any
    valid: list[Any]
    invalid: list[Any]
    means: Any = None
    """The same for a validator that does not know what of the schema is no JSON Schema."""

    def is_valid(self, document: Any) -> bool:
        meant = self.schema if self.means is None else self.means
        oracle = validator_for(meant)(meant, format_checker=FORMATS)
        return bool(oracle.is_valid(document)) and (meant not in ({}, True) or _is_map(document))


def _is_map(document: object) -> bool:
    """What we add for a schema that says nothing."""
    return isinstance(document, dict)


CASES = msgspec.json.decode(FILE.read_bytes(), type=list[Case])


def matcher(grammar: str) -> Matcher:
    return Matcher.compile(grammar, tiny_vocabulary())


def accepts(grammar: str, text: str) -> bool:
    """Whether it is a whole text of the grammar."""
    follower = matcher(grammar)
    ids = tiny_tokenizer().encode(text, add_special_tokens=False)
    return all(map(follower.accept, ids)) and follower.accept(tiny_tokenizer().eos_token_ids[0])


@dataclass(frozen=True, slots=True)
class Walk:
    text: str
    stopped: bool


class Walker:
    """Walks through a grammar of the shipped vocabulary."""

    def __init__(self, grammar: str) -> None:
        self._start = matcher(grammar)
        self._tokenizer = tiny_tokenizer()
        encode = self._tokenizer.encode
        closers = {encode(text, add_special_tokens=False)[0] for text in CLOSERS}
        self._weights = np.ones(self._tokenizer.vocab_size)
        self._weights[[*closers, *self._tokenizer.eos_token_ids]] = self._weights.size / 8

    def walk(self, seed: int, *, max_tokens: int = 400) -> Walk:
        follower, chance, ids = self._start.copy(), Random(seed), list[int]()
        words = np.zeros(tiny_vocabulary().num_words, np.int32)
        for _ in range(max_tokens):
            follower.fill(words)
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            odds = np.cumsum(self._weights * bits[: self._weights.size])
            assert odds[-1] > 0, f"nothing is allowed after {self._decode(ids)!r}"
            token_id = int(np.searchsorted(odds, chance.random() * odds[-1], side="right"))
            assert follower.accept(token_id), follower.error
            if token_id in self._tokenizer.eos_token_ids:
                return Walk(self._decode(ids), stopped=True)
            ids.append(token_id)
        return Walk(self._decode(ids), stopped=False)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def told(document: Any) -> list[str]:
    """A document as models write it."""
    return [json.dumps(document, ensure_ascii=False, **style) for style in STYLES]


STYLES: tuple[dict[str, Any], ...] = (
    {"separators": (",", ":")},
    {},
    {"indent": 2},
    {"indent": 4},
)
