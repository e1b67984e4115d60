"""Grammars of an output: checked, compiled for a vocabulary, and followed token by token.

The door to llguidance. A grammar is a text of Lark as llguidance reads it, or its JSON of one
grammar. Tokens that a tokeniser adds to its vocabulary, special or not, are no text to a grammar:
it names them (`<|im_end|>`, `<[151645]>`), so that none comes by chance into a string. How a text
is cut into tokens is the model's choice: none is forced. Compiled grammars are not for two threads
at a time.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from protocol.text.tokenizer import Tokenizer

Words = NDArray[np.int32]
"""Bit t % 32 of word t // 32: token t is allowed."""

_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""States take up to 2 kB each, and each text that follows a grammar may make its own. Left as they
are: 50 ms to compile what is not yet too complex, 15 ms for a mask."""
_FREE = '%llguidance {"no_forcing": true}'
"""Else a mask allows of a text that must come the one token that the tokeniser would take, and
asks the tokeniser each time."""


class GrammarTokenizer:
    """A vocabulary as llguidance wants it. Thread-safe. Takes about a second to make for 200,000
    tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = tokenizer.vocab_size
        vocabulary = _Vocabulary(tokenizer)
        # What it asks of a wrapper is what it documents, not the class that it names.
        self.raw = LLTokenizer(cast(Any, vocabulary), eos_token=vocabulary.ends)
        self.num_words = -(-self.raw.vocab_size // 32)
        """Of a mask; ids from `vocab_size` on are nobody's."""

    def new_words(self, num_rows: int) -> Words:
        """[rows, `num_words`], of no value yet."""
        return np.empty((num_rows, self.num_words), np.int32)


class _Vocabulary:
    """What llguidance asks of a tokeniser."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.ends = list(tokenizer.eos_token_ids)
        if not self.ends:  # it must have one, which none of the model's tokens is
            self.ends = [size]
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        added = {token_id for token_id in tokenizer.added_token_ids if token_id < size}
        self.special_token_ids = sorted(added.union(self.ends))

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("no text is forced")


def check_grammar(text: str, tokenizer: GrammarTokenizer | None = None) -> None:
    """Raises ValueError saying what is wrong, or what llguidance cannot do. Tokens that it names
    are looked up where there is a tokeniser."""
    lark = _as_lark(text)
    raw = None if tokenizer is None else tokenizer.raw
    if why := LLMatcher.validate_grammar(lark, raw, limits=_LIMITS):
        raise ValueError(_first_line(why))


class Matcher:
    """A text that follows a grammar, as far as it has come."""

    def __init__(self, compiled: LLMatcher) -> None:
        self._matcher = compiled

    @classmethod
    def compile(cls, text: str, tokenizer: GrammarTokenizer) -> "Matcher":
        """At its beginning. Raises ValueError as `check_grammar`. Releases the interpreter lock."""
        compiled = LLMatcher(tokenizer.raw, _as_lark(text), log_level=0, limits=_LIMITS)
        if why := compiled.get_error():
            raise ValueError(_first_line(why))
        return cls(compiled)

    def copy(self) -> "Matcher":
        return Matcher(self._matcher.deep_copy())

    def accept(self, token_id: int) -> bool:
        """Go on with a token; False where it is none that the grammar allows, or after an error,
        for good."""
        return self._matcher.consume_token(token_id)

    @property
    def has_ended(self) -> bool:
        """The text is whole and nothing can follow, or an end of text has."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str:
        """Why it cannot go on; "" while it can."""
        matcher = self._matcher
        if not matcher.is_error():
            return ""
        why = _first_line(matcher.get_error())  # a sentence, or the name of a reason to stop
        return why if " " in why else f"no token goes on ({why or matcher.stop_reason()})"

    def fill(self, words: Words) -> None:
        """The mask of the next token, into `num_words`. Releases the interpreter lock."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)


class MaskFiller:
    """Fills masks of many texts at once on threads of its own."""

    def __init__(self, num_threads: int) -> None:
        self._threads = LLExecutor(num_threads)

    def fill(self, matchers: Sequence[Matcher], masks_RW: Words) -> None:
        """Row r for matcher r. Of one in error the row is of no use. Releases the interpreter
        lock."""
        rows = [(matcher._matcher, row) for row, matcher in enumerate(matchers)]
        num_rows, num_words = masks_RW.shape
        self._threads.unsafe_compute_mask_ptr(rows, masks_RW.ctypes.data, 4 * num_words, num_rows)


def _as_lark(text: str) -> str:
    """With the options that we work with."""
    if text.lstrip().startswith("{"):
        text = _lark_of_json(text)
    return f"{text}\n{_FREE}"  # last, so that messages name the lines and columns of the text


def _lark_of_json(text: str) -> str:
    """Of llguidance's JSON, which holds no options of that kind."""
    try:
        whole: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the grammar is no JSON: {error}") from error
    match whole:
        case {"grammars": [{"lark_grammar": str(lark), **rest}]} if not rest:
            return lark
        case {"grammars": [{"json_schema": schema, **rest}]} if not rest:
            return f"start: %json {json.dumps(schema)}"
        case _:
            raise ValueError("a grammar in JSON must be one lark_grammar or one json_schema")


def _first_line(why: str) -> str:
    return why.strip().partition("\n<")[0].partition("\n   1 |")[0].strip()
