"""Who of the queue may start, and on which blocks: the most urgent, of equals who came first.

Pure.
"""

from bisect import bisect_left, bisect_right
from itertools import chain, islice

from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import NO_BLOCK
from engine.limits import EngineLimits
from engine.scheduling.deferrals import BEFORE_PROMPT, Deferral
from engine.scheduling.in_flight import STEPS_AHEAD
from engine.scheduling.sequence_table import SequenceTable
from engine.sequence import Sequence, SequenceState


class SequenceAdmission:
    def __init__(self, *, cache: PrefixCache, limits: EngineLimits, table: SequenceTable) -> None:
        self._cache = cache
        self._limits = limits
        self._table = table
        self._blocked: tuple[Sequence, int] | None = None
        """Head of the queue that did not fit, and the blocks it needs."""
        self.num_forked = 0

    def admit_head(self, budget: int, *, now: float, before: int | None = None) -> Sequence | None:
        """The head of the queue if it may start now, and its priority is one of those below
        `before`. Nobody overtakes it; who waits for what another brings is no head meanwhile."""
        while (head := self._head(budget, before)) is not None:
            taken = self._take_blocks(head)
            if taken is True:
                self._table.admit(head, now=now, pull_end=self._pull_end(head))
                return head
            if taken is False:
                return None
            self._table.defer(taken)
        return None

    def _head(self, budget: int, before: int | None) -> Sequence | None:
        head = next(iter(self._table.waiting.values()), None)
        if head is None or (before is not None and head.priority >= before):
            return None
        num_kept, _ = self._table.deferrals.kept_from(head)
        if self._table.num_running + num_kept >= self._limits.max_running:
            return None
        if budget <= 0 and not (head.needs_fetch or head.pull_tokens):
            return None
        return head

    def is_queue_full(self) -> bool:
        """Whoever can start at once does not count as waiting: a burst finds seats first."""
        waiting, compiling = self._table.waiting, self._table.compiling
        num_over = len(waiting) + len(compiling) - self._limits.max_waiting
        if num_over < 0:
            return False
        deferred = self._table.deferred.values()
        num_seats = self._limits.max_running - self._table.num_running - len(deferred)
        num_blocks = self._cache.num_spare - self._table.deferrals.num_blocks
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

    def _take_blocks(self, sequence: Sequence) -> bool | Deferral:
        """Match the prefix cache and take blocks for all tokens, of groups with a window a
        promise: all or nothing. A deferral where another brings the first one that is lacking.

        At least one token is left to compute, unless a fetch brings the next one along.
        """
        cache, groups, table = self._cache, self._cache.groups, sequence.block_table
        _, num_kept = self._table.deferrals.kept_from(sequence)
        available = cache.num_spare - self._headroom() - num_kept
        if self._blocked is not None:
            blocked, num_needed = self._blocked
            if blocked is sequence and num_needed > available:
                return False  # matching a long prompt in every step would cost the decodes
        num_tokens, resume_at = sequence.num_tokens, 0
        if sequence.needs_fetch:
            resume_at = num_tokens
        most = self._num_reusable(sequence)
        matched = table.match(sequence.tokens, max_tokens=most, resume_at=resume_at)
        num_matched = len(matched) // groups.num_groups
        promise, origin = self._promise(sequence), self._origin(sequence)
        if origin is not None and origin.state in BEFORE_PROMPT:
            return self._until_forked(sequence, origin, promise=promise)
        if (deferral := self._deferral(sequence, num_matched, promise=promise)) is not None:
            return deferral
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
        if origin is not None:
            self._fork(sequence, origin)
        return True

    def _origin(self, sequence: Sequence) -> Sequence | None:
        """Whose prompt's KV it is to go on from: one before it, with the same prompt."""
        origin = None if sequence.fork_of is None else self._table.get(sequence.fork_of)
        if origin is None or sequence.outputs or origin.urgency > sequence.urgency:
            return None
        same = origin.block_table.chain[0] == sequence.block_table.chain[0]
        return origin if same and origin.prompt == sequence.prompt else None

    def _until_forked(self, sequence: Sequence, origin: Sequence, *, promise: int) -> Deferral:
        num_tokens, groups = sequence.num_tokens, self._cache.groups
        num_own = groups.num_rows(num_tokens) - (num_tokens - 1) // self._cache.block_tokens
        return Deferral(
            waiter=sequence, provider=origin, num_rows=None,
            num_blocks=groups.num_whole * num_own + promise,
        )  # fmt: skip

    def _fork(self, sequence: Sequence, origin: Sequence) -> None:
        """Where all whole blocks were found and the origin still has the next, it is copied, and
        only the prompt's last token is computed. Else what is lacking is."""
        row, num_own = divmod(sequence.num_tokens - 1, self._cache.block_tokens)
        num_groups = self._cache.num_groups
        source = origin.block_table.blocks[row * num_groups : (row + 1) * num_groups]
        is_here = origin.state is SequenceState.DECODING and NO_BLOCK not in source
        if not is_here or sequence.num_computed < row * self._cache.block_tokens:
            return
        self.num_forked += 1
        if num_own:
            sequence.block_table.copy_row(row, source)
            sequence.num_computed = sequence.num_launched = sequence.num_tokens - 1

    def _num_reusable(self, sequence: Sequence) -> int:
        """Of its first tokens KV that others brought is used: at least one is left to compute,
        unless a fetch brings the next one along."""
        num_tokens = sequence.num_tokens - (not sequence.needs_fetch)
        return min(num_tokens, sequence.num_reusable)

    def _pull_end(self, sequence: Sequence) -> int:
        """The end of the tokens whose KV is fetched from somebody's cache; 0 where the own cache
        has as many. At least one token is left to compute."""
        most = min(sequence.pull_tokens, sequence.num_tokens - 1, sequence.num_reusable)
        end = most - most % self._cache.block_tokens
        return end if end > sequence.num_computed else 0

    def _deferral(self, sequence: Sequence, index: int, *, promise: int) -> Deferral | None:
        """Who brings token block `index`, which it lacks first, if it is worth waiting for."""
        size, groups = self._cache.block_tokens, self._cache.groups
        most = self._num_reusable(sequence) // size
        if index >= most:
            return None
        for provider in self._table.deferrals.providers(sequence.block_table.chain[index + 1]):
            if self._is_awaited(provider, sequence):
                num_rows = _num_shared(provider, sequence, index, most=most, size=size)
                if num_rows > index:
                    num_new = groups.num_whole * (groups.num_rows(sequence.num_tokens) - num_rows)
                    return Deferral(
                        waiter=sequence, provider=provider, num_rows=num_rows,
                        num_blocks=num_new + promise,
                    )  # fmt: skip
        return None

    def _is_awaited(self, provider: Sequence, waiter: Sequence) -> bool:
        """Whether what a provider brings is there no later than if this one brought it itself.

        What is computed is: the provider is as urgent, and has it before it in the budget. What is
        pulled is findable when all of the pull is here: no more than this one would pull. Of a
        REMOTE's fetch the end waits for somebody else's prefill. But an ending fetch tells in a
        moment what came, so a request placed again does not fetch that twice.
        """
        match provider.state:
            case SequenceState.UNWINDING:
                return True
            case SequenceState.FETCHING if provider.is_pulling:
                most = min(waiter.pull_tokens, self._num_reusable(waiter))
                covered = 0 < provider.pull_tokens <= most
            case SequenceState.PREFILLING | SequenceState.DRAINING:
                covered = True
            case _:
                return False
        return covered and not waiter.needs_fetch and provider.priority <= waiter.priority

    def _headroom(self) -> int:
        """Blocks left to those that grow, so that admission is not undone at once: one of each
        group, at most a twentieth of the pool."""
        num_growing = len(self._table.decoding) + len(self._table.fetching)
        num_groups = self._cache.num_groups
        return min(num_growing * num_groups, self._cache.blocks.num_blocks // 20 + num_groups)

    def _promise(self, sequence: Sequence) -> int:
        """Blocks of groups with a window that a sequence to be admitted may hold at a time; of a
        fork those that it copies too."""
        num_ahead = STEPS_AHEAD * (1 if sequence.needs_fetch else self._limits.token_budget)
        num_held = self._cache.groups.most_held(
            sequence.num_tokens, num_ahead=num_ahead, lends=sequence.leases
        )
        return num_held + (len(self._cache.windowed) if sequence.fork_of is not None else 0)


def _num_shared(one: Sequence, other: Sequence, index: int, *, most: int, size: int) -> int:
    """Token blocks that two sequences share from the first one on, at most `most`, where they share
    `index`. Of one that has its ending while steps are launched, what those bring."""
    num_tokens = one.num_tokens
    if one.state is SequenceState.DRAINING:
        num_tokens = min(num_tokens, one.num_launched)
    most = min(most, num_tokens // size)
    start = index * size

    def differ(num_rows: int) -> bool:
        stop = num_rows * size
        return one.tokens(start, stop) != other.tokens(start, stop)

    return bisect_left(range(most + 1), True, lo=index, hi=most + 1, key=differ) - 1
