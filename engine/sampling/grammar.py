"""Which tokens a sequence may have next: by its grammar, and by the ids that its request allows.

Grammars are compiled on threads of their own and kept, so that a request waits for its own alone;
masks are filled on other threads while the forward runs, for all rows of a step at once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from engine.batch import Allowed, Chunk, Words
from engine.constraint import Constraint
from protocol.messages import Grammar, Sampling
from protocol.text.grammar import GrammarTokenizer, MaskFiller, Matcher
from protocol.text.tokenizer import Tokenizer

MAX_CACHED = 128
MAX_CACHED_CHARS = 16 << 20
"""Of the texts of the grammars kept; compiled, they take some ten times as much."""
MAX_COMPILERS = 2
MAX_FILLERS = 8
"""Threads for 32 rows of 0.2 ms: beside a step of 5 ms nobody waits for them."""
FILL_S = 30.0
"""A mask takes 20 ms at most by the limits of `protocol.text.grammar`."""


@dataclass(frozen=True, slots=True, eq=False)
class AllowedTokens:
    """A `Constraint` to the same ids at each place."""

    _words: Words
    has_ended = False
    error = ""

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> "AllowedTokens":
        ids = np.unique(np.asarray(token_ids, np.int64))
        bits = np.zeros((int(ids[-1]) // 32 + 1) * 32, np.uint8)
        bits[ids] = 1
        return cls(np.packbits(bits, bitorder="little").view(np.int32))

    def accept(self, token_id: int) -> None:
        """Its place is no matter."""

    @property
    def allowed(self) -> Allowed:
        return self

    def words(self) -> Words:
        return self._words


class GrammarConstraint:
    """A `Constraint` to a text, from where it begins."""

    def __init__(self, grammar: Grammar, matcher: Matcher, *, only: AllowedTokens | None) -> None:
        self._matcher = matcher
        self._only = only
        self._begins_after = tuple(map(list, grammar.begins_after))
        self._longest = max(map(len, self._begins_after), default=0)
        self._newest: list[int] = []
        """What a run of `begins_after` may be part of."""
        self._begun = not self._begins_after
        self._mask: Words | None = None
        self._filled: Future[None] | None = None
        self._why = ""

    def accept(self, token_id: int) -> None:
        if self._begun:
            if not self._matcher.accept(token_id):
                self._why = self._why or f"token {token_id}: {self._matcher.error}"
            return
        newest = self._newest = [*self._newest, token_id][-self._longest :]
        self._begun = any(newest[-len(run) :] == run for run in self._begins_after)

    @property
    def has_ended(self) -> bool:
        return self._begun and self._matcher.has_ended

    @property
    def error(self) -> str:
        return self._why

    @property
    def allowed(self) -> Allowed | None:
        return self if self._begun else self._only

    def words(self) -> Words:
        """All zeros, and an error from then on, where no token can follow."""
        assert self._filled is not None and self._mask is not None, "nobody fills its mask"
        self._filled.result(FILL_S)
        mask = self._mask
        if self._matcher.error:
            self._why = self._matcher.error
            mask[:] = 0
        elif self._only is not None:
            _keep_only(mask, self._only.words())
            if not mask.any():
                self._why = "no token that the grammar allows next is of allowed_token_ids"
        return mask


def _keep_only(mask: Words, words: Words) -> None:
    size = min(len(mask), len(words))
    mask[:size] &= words[:size]
    mask[size:] = 0


class Grammars:
    """Compiles them, and fills the masks of those that have begun."""

    def __init__(self, tokenizer: Tokenizer, *, num_threads: int) -> None:
        """`num_threads` for masks, at most MAX_FILLERS. The vocabulary is made ready meanwhile."""
        self._compilers = ThreadPoolExecutor(MAX_COMPILERS, "grammar")
        self._filling = ThreadPoolExecutor(1, "masks")
        self._tokenizer = self._compilers.submit(GrammarTokenizer, tokenizer)
        self._filler = MaskFiller(max(1, min(num_threads, MAX_FILLERS)))
        self._compiled: OrderedDict[str, Matcher] = OrderedDict()
        self._num_chars = 0
        self._lock = Lock()

    def compile(
        self,
        sampling: Sampling,
        outputs: Sequence[int],
        *,
        tell: Callable[[Constraint | ValueError], None],
    ) -> None:
        """Tells, from another thread, the constraint that has accepted `outputs`, or what is wrong
        with the grammar."""
        self._compilers.submit(self._compile, sampling, tuple(outputs), tell)

    def begin_filling(self, chunks: Iterable[Chunk]) -> None:
        """The masks of those rows that wait for one; `words()` waits for the end."""
        rows = [c.allowed for c in chunks if isinstance(c.allowed, GrammarConstraint)]
        if not rows:
            return
        masks_RW = self._tokenizer.result().new_words(len(rows))
        matchers = [row._matcher for row in rows]
        filled = self._filling.submit(self._filler.fill, matchers, masks_RW)
        for row, mask in zip(rows, masks_RW, strict=True):
            row._mask, row._filled = mask, filled

    def close(self) -> None:
        """Nobody is told anything afterwards."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._filling.shutdown(wait=False, cancel_futures=True)

    def _compile(
        self,
        sampling: Sampling,
        outputs: Sequence[int],
        tell: Callable[[Constraint | ValueError], None],
    ) -> None:
        grammar, only_ids = sampling.grammar, sampling.allowed_token_ids
        assert grammar is not None, "there is nothing to compile"
        try:
            only = AllowedTokens.of(only_ids) if only_ids else None
            constraint = GrammarConstraint(grammar, self._matcher(grammar.text), only=only)
            for token_id in outputs:
                constraint.accept(token_id)
        except Exception as error:  # its request's alone, whatever it is
            tell(error if isinstance(error, ValueError) else ValueError(repr(error)))
        else:
            tell(constraint)

    def _matcher(self, text: str) -> Matcher:
        """At the beginning. The same text compiled twice at once is kept once."""
        with self._lock:
            if (known := self._compiled.get(text)) is not None:
                self._compiled.move_to_end(text)
                return known.copy()
        compiled = Matcher.compile(text, self._tokenizer.result())
        copy = compiled.copy()
        with self._lock:
            if text not in self._compiled:
                self._num_chars += len(text)
            self._compiled[text] = compiled
            while self._num_chars > MAX_CACHED_CHARS or len(self._compiled) > MAX_CACHED:
                dropped, _ = self._compiled.popitem(last=False)
                self._num_chars -= len(dropped)
        return copy
