"""Texts drawn at random from a grammar, token by token."""

import random
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from protocol.messages import Grammar
from protocol.text.grammar import GrammarTokenizer
from protocol.text.tokenizer import Tokenizer

WORDS = ('"', "}", "]", ", ", ": ", "a", "é", "\n", "1", "0", "<", "true", " ", ")", "'")

FREE = '%llguidance {"no_forcing": true}'
HURRY = 200
"""Tokens, after which what closes something is tried first, every other time."""


class Drawer:
    """Ends soon: what closes something is tried first."""

    def __init__(self, tokenizer: Tokenizer, phrases: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = GrammarTokenizer(tokenizer)
        closing = ['"', "}", "]", *tokenizer.added_tokens, *phrases]
        self._closing = [tokenizer.encode(one, add_special_tokens=False) for one in closing]
        self._words = [tokenizer.encode(one) for one in WORDS]
        self._end = tokenizer.eos_token_ids[0]

    def draw(self, grammar: Grammar, rng: random.Random, *, max_tokens: int = 8000) -> list[int]:
        """Tokens of a whole text. AssertionError where none comes to its end."""
        matcher = LLMatcher(self._vocabulary.raw, f"{FREE} {grammar.text}")
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            if matcher.is_stopped() or (matcher.is_accepting() and rng.random() < 0.5):
                return tokens
            phrases = self._closing
            if len(tokens) < HURRY or rng.random() < 0.5:
                phrases = rng.sample([*phrases, *self._words], len(phrases) + len(self._words))
            step = self._step(matcher, phrases, rng)
            assert matcher.consume_tokens(step), matcher.get_error()
            tokens += step
        raise AssertionError(self._tokenizer.decode(tokens, skip_special_tokens=False)[-300:])

    def _step(self, matcher: LLMatcher, phrases: list[list[int]], rng: random.Random) -> list[int]:
        for phrase in phrases if rng.random() < 0.8 else ():
            if matcher.validate_tokens(phrase) == len(phrase):
                return phrase
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(token) for token in np.flatnonzero(bits) if token != self._end]
        assert allowed, "nothing goes on"
        return [rng.choice(allowed)]
