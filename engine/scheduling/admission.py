"""Who of the queue may start, and on which blocks: the most urgent, of equals who came first.

Pure.
"""

from bisect import bisect_right
from itertools import chain, islice

from engine.kvcache.prefix_cache import PrefixCache
from engine.limits import EngineLimits
from engine.scheduling.in_flight import STEPS_AHEAD
from engine.scheduling.sequence_table import SequenceTable
from engine.sequence import Sequence


class SequenceAdmission:
    def __init__(self, *, cache: PrefixCache, limits: EngineLimits, table: SequenceTable) -> None:
        self._cache = cache
        self._limits = limits
        self._table = table
        self._blocked: tuple[Sequence, int] | None = None
        """Head of the queue that did not fit, and the blocks it needs."""

    def admit_head(self, budget: int, *, now: float, before: int | None = None) -> Sequence | None:
        """The head of the queue if it may start now, and its priority is one of those below
        `before`. Nobody overtakes it."""
        head = next(iter(self._table.waiting.values()), None)
        if head is not None and before is not None and head.priority >= before:
            return None
        if head is None or self._table.num_running >= self._limits.max_running:
            return None
        if budget <= 0 and not (head.needs_fetch or head.pull_tokens):
            return None
        if not self._take_blocks(head):
            return None
        self._table.admit(head, now=now, pull_end=self._pull_end(head))
        return head

    def is_queue_full(self) -> bool:
        """Whoever can start at once does not count as waiting: a burst finds seats first."""
        waiting, compiling = self._table.waiting, self._table.compiling
        num_over = len(waiting) + len(compiling) - self._limits.max_waiting
        if num_over < 0:
            return False
        num_seats = self._limits.max_running - self._table.num_running
        num_blocks = self._cache.num_spare
        for sequence in islice(chain(waiting.values(), compiling.values()), num_over + 1):
            num_seats -= 1
            groups, num_tokens = self._cache.groups, sequence.num_tokens
            num_blocks -= groups.num_whole * groups.num_rows(num_tokens) + self._promise(sequence)
            if num_seats < 0 or num_blocks < 0:
                return True
        return False

    def max_context_tokens(self) -> int:
        """The most tokens for which the pool has room, for one sequence alone, however it runs."""
        groups, most = self._cache.groups, self._limits.max_context_tokens
        size, num_ahead = groups.block_tokens, STEPS_AHEAD * self._limits.token_budget

        def num_blocks(num_rows: int) -> int:
            # One short of a whole block: a window then begins a row earlier.
            num_tokens = max(0, num_rows * size - (size > 1))
            held = groups.most_held(num_tokens, num_ahead=num_ahead, lends=True)
            return num_rows * groups.num_whole + held

        rows = range(groups.num_rows(most) + 1)
        num_rows = bisect_right(rows, self._cache.blocks.num_blocks, key=num_blocks) - 1
        return min(most, num_rows * size)

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Match the prefix cache and take blocks for all tokens, of groups with a window a
        promise: all or nothing.

        At least one token is left to compute, unless a fetch brings the next one along.
        """
        cache, groups, table = self._cache, self._cache.groups, sequence.block_table
        available = cache.num_spare - self._headroom()
        if self._blocked is not None:
            blocked, num_needed = self._blocked
            if blocked is sequence and num_needed > available:
                return False  # matching a long prompt in every step would cost the decodes
        num_tokens = sequence.num_tokens
        computable = num_tokens if sequence.needs_fetch else num_tokens - 1
        computable = min(computable, sequence.num_reusable)
        resume_at = num_tokens if sequence.needs_fetch else 0
        matched = table.match(sequence.tokens, max_tokens=computable, resume_at=resume_at)
        num_matched = len(matched) // groups.num_groups
        if self._is_arriving(sequence, num_matched):
            return False
        promise = self._promise(sequence)
        num_new = groups.num_whole * (groups.num_rows(num_tokens) - num_matched)
        num_needed = num_new + cache.num_unheld(matched) + promise
        if num_needed > available:
            self._blocked = (sequence, num_needed)
            return False
        self._blocked = None
        named = sequence.leases or sequence.needs_fetch
        lacking = groups.lacking(num_matched, num_tokens=num_tokens, named=named)
        table.fill(matched, lacking, promise=promise)
        sequence.num_computed = sequence.num_launched = num_matched * cache.block_tokens
        return True

    def _pull_end(self, sequence: Sequence) -> int:
        """The end of the tokens whose KV is fetched from somebody's cache; 0 where the own cache
        has as many. At least one token is left to compute."""
        most = min(sequence.pull_tokens, sequence.num_tokens - 1, sequence.num_reusable)
        end = most - most % self._cache.block_tokens
        return end if end > sequence.num_computed else 0

    def _is_arriving(self, sequence: Sequence, index: int) -> bool:
        """Whether the fetch of a sequence that has its ending may have brought the block that
        this one lacks first: it will be said in a moment, when that fetch has ended. So a request
        placed again does not fetch twice what came for its last attempt."""
        lacks = slice(index + 1, index + 2)
        wanted = sequence.block_table.chain[lacks]
        unwinding = self._table.unwinding.values()
        return bool(wanted) and any(s.block_table.chain[lacks] == wanted for s in unwinding)

    def _headroom(self) -> int:
        """Blocks left to those that grow, so that admission is not undone at once: one of each
        group, at most a twentieth of the pool."""
        num_growing = len(self._table.decoding) + len(self._table.fetching)
        num_groups = self._cache.num_groups
        return min(num_growing * num_groups, self._cache.blocks.num_blocks // 20 + num_groups)

    def _promise(self, sequence: Sequence) -> int:
        """Blocks of groups with a window that a sequence to be admitted may hold at a time."""
        num_ahead = STEPS_AHEAD * (1 if sequence.needs_fetch else self._limits.token_budget)
        return self._cache.groups.most_held(
            sequence.num_tokens, num_ahead=num_ahead, lends=sequence.leases
        )
