"""Cached blocks held for peers that fetch them: lent from the cache, not from a request. Pure.

A loan takes nothing that this worker's own requests have been promised, and all loans together no
more than a share of the pool, since a block that is lent cannot be evicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NewType

from engine.kvcache.prefix_cache import PrefixCache
from protocol.ids import BlockHash

LOAN_SHARE: Final = 4
"""One part in so many of the pool is lent at most."""
MAX_LOANS: Final = 256
LoanId = NewType("LoanId", int)
"""Chosen by whoever asks; never used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LentPrefix:
    block_ids: tuple[int, ...] = ()
    """Of the first tokens that were asked for, in order."""
    last: BlockHash
    """Of the last of them, which stands for all before it; without any, where the chain begins."""


class Loans:
    """Those of one cache."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._lent: dict[LoanId, tuple[int, ...]] = {}
        self._num_lent = 0

    @property
    def blocks(self) -> list[int]:
        """Every block that is lent, as often as it is."""
        return [block for blocks in self._lent.values() for block in blocks]

    def lend(self, loan: LoanId, *, seed: BlockHash, token_ids: Sequence[int]) -> LentPrefix:
        """The blocks of the most first of these tokens that are cached under this seed, held until
        `end`; fewer, or none, where that is more than may be lent. Of a cache without windows."""
        cache = self._cache
        assert not cache.windowed, "of a window only the end is cached"
        if len(self._lent) >= MAX_LOANS:
            return LentPrefix(last=seed)
        chain = [seed]
        most = cache.blocks.num_blocks // LOAN_SHARE * cache.block_tokens
        matched = cache.match(
            chain,
            lambda start, stop: list(token_ids[start:stop]),
            max_tokens=min(len(token_ids), most),
        )
        blocks = tuple(matched[: self._num_lendable(matched)])
        if blocks:
            cache.acquire_blocks(blocks)
            self._lent[loan] = blocks
            self._num_lent += len(blocks)
        return LentPrefix(block_ids=blocks, last=chain[len(blocks)])

    def hold_spare(self, loan: LoanId) -> int | None:
        """A block of no contents, held until `end`; None where none can be spared. The least
        recently used may be evicted for it. Of a cache of one KV group."""
        if len(self._lent) >= MAX_LOANS or self._cache.num_spare < 1:
            return None
        (block,) = self._cache.allocate_blocks(1)
        self._lent[loan] = (block,)
        self._num_lent += 1
        return block

    def end(self, loan: LoanId) -> None:
        """Give its blocks back, tail first. An unknown one is no error."""
        blocks = self._lent.pop(loan, ())
        self._num_lent -= len(blocks)
        for block in reversed(blocks):
            self._cache.let_go(block)

    def _num_lendable(self, matched: Sequence[int]) -> int:
        """Of these blocks. Of several KV groups whole token blocks are lent."""
        cache = self._cache
        room = max(0, cache.blocks.num_blocks // LOAN_SHARE - self._num_lent)
        most = min(len(matched), room)
        while most and cache.num_unheld(matched[:most]) > cache.num_spare:
            most -= 1
        return most - most % cache.num_groups
