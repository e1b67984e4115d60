"""The blocks of one sequence: its table, the hashes of their contents, what it was promised.

Every change of a table happens here, in step with the books of the prefix cache. Knows no
sequence: who computes what when is told to it. Pure.
"""

from collections.abc import Sequence

from engine.kvcache.prefix_cache import Entry, PrefixCache, Tokens
from engine.kvcache.windows import NO_BLOCK
from protocol.blocks import next_hash
from protocol.ids import BlockHash


class BlockTable:
    """Flat, as of `engine.batch.Chunk`: token block i of KV group g at `i * num_groups + g`,
    NO_BLOCK where the group needs none. A row is one token block, in every group."""

    __slots__ = (
        "_cache", "_is_lent", "_sources", "_twins", "blocks", "chain", "num_promised", "num_sealed",
        "num_slots",
    )  # fmt: skip

    def __init__(
        self, cache: PrefixCache, *, salt: str, adapter: str = "", num_prompt: int = 0, lent: bool
    ) -> None:
        """`lent`: somebody may read the blocks under a lease, so they cannot move."""
        self.blocks: list[int] = []
        self.chain: list[BlockHash] = [
            cache.seed(salt=salt, adapter=adapter, num_prompt=num_prompt)
        ]
        """The first seeds the hash chain, `chain[i + 1]` is of token block i; grown as needed."""
        self.num_slots = 0
        """Tokens that its rows have room for."""
        self.num_sealed = 0
        """Rows that the prefix cache knows, in every group that has them."""
        self.num_promised = 0
        """Blocks of groups with a window that it may hold at a time."""
        self._cache = cache
        self._is_lent = lent
        self._twins: dict[int, int] = {}
        """By place: cached blocks equal to own ones that cannot move (see `seal`)."""
        self._sources: dict[int, int] = {}
        """By place: another's blocks that own ones are copied from, held until they are."""

    @property
    def holds(self) -> list[int]:
        """Every block it holds, as often as it does."""
        own = (block for block in self.blocks if block != NO_BLOCK)
        return [*own, *self._twins.values(), *self._sources.values()]

    @property
    def keeps_promise(self) -> bool:
        """Whether it holds no more blocks of windows than it was promised."""
        return self._num_in_windows <= self.num_promised

    @property
    def _num_in_windows(self) -> int:
        own = sum(len(self._in_window(group)) for group in self._cache.windowed)
        return own + len(self._sources_in_windows)

    @property
    def _sources_in_windows(self) -> list[int]:
        windowed, num_groups = self._cache.windowed, self._cache.num_groups
        return [block for place, block in self._sources.items() if place % num_groups in windowed]

    def _in_window(self, group: int) -> list[int]:
        own = self.blocks[group :: self._cache.num_groups]
        return [block for block in own if block != NO_BLOCK]

    def seen_after(self, num_tokens: int) -> tuple[int, ...]:
        """The table without what none of the tokens after so many sees."""
        groups = self._cache.groups
        return tuple(groups.mask_unseen(self.blocks, groups.first_rows(num_tokens)))

    def hashes(self, tokens: Tokens, num_rows: int) -> tuple[BlockHash, ...]:
        """Those of its first token blocks, which need not be computed yet."""
        self._grow_chain(tokens, num_rows)
        return tuple(self.chain[1 : num_rows + 1])

    def next_hash(self, tokens: Tokens, num_tokens: int) -> BlockHash | None:
        """That of its first token block that is not sealed; None where the tokens do not fill
        it."""
        num_rows = self.num_sealed + 1
        if num_rows * self._cache.block_tokens > num_tokens:
            return None
        self._grow_chain(tokens, num_rows)
        return self.chain[num_rows]

    def _grow_chain(self, tokens: Tokens, num_rows: int) -> None:
        size = self._cache.block_tokens
        while len(self.chain) <= num_rows:
            start = (len(self.chain) - 1) * size
            self.chain.append(next_hash(self.chain[-1], tokens(start, start + size)))

    # -- taking blocks ------------------------------------------------------------------------

    def match(self, tokens: Tokens, *, max_tokens: int, resume_at: int = 0) -> list[int]:
        """As `PrefixCache.match`, of this sequence's tokens."""
        return self._cache.match(self.chain, tokens, max_tokens=max_tokens, resume_at=resume_at)

    def fill(self, matched: Sequence[int], lacking: Sequence[bool], *, promise: int) -> None:
        """The matched blocks, and after them new ones where they are `lacking`. The caller has
        checked that there is room, for what it promises of windows too."""
        self.promise(promise)
        self._cache.acquire_blocks(matched)
        new = iter(self._cache.allocate_blocks(sum(lacking)))
        self.blocks = [*matched, *(next(new) if lacks else NO_BLOCK for lacks in lacking)]
        self.num_slots = len(self.blocks) // self._cache.num_groups * self._cache.block_tokens
        self.num_sealed = len(matched) // self._cache.num_groups
        for group in self._cache.windowed:
            self._cache.promises.add_holders(self._in_window(group))

    def copy_row(self, row: int, source: Sequence[int]) -> None:
        """What it computes in this row begins with what the `source` blocks have, one of each
        group: they are held until `note_copied`, whatever becomes of their owner. Those of windows
        were promised."""
        for group, block in enumerate(source):
            self._cache.hold(block)
            self._sources[row * self._cache.num_groups + group] = block
        self._cache.promises.add_holders(self._sources_in_windows)

    @property
    def copies(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of what is not copied yet; the rows are covered."""
        if not self._sources:
            return ()  # asked for every token
        return tuple((source, self.blocks[place]) for place, source in self._sources.items())

    def note_copied(self) -> None:
        """A step that copies them is over."""
        if not self._sources:
            return
        for block in self._sources_in_windows:
            self._cache.promises.drop_holder(block)
        for block in self._sources.values():
            self._cache.let_go(block)
        self._sources.clear()

    def add_row(self, *, promise: int) -> bool:
        """One more row, and this promise from then on; False if others were promised all that is
        left."""
        cache = self._cache
        if cache.num_spare < cache.groups.num_whole + promise - self.num_promised:
            return False
        self.promise(promise)
        row = cache.allocate_blocks(cache.num_groups)
        self.blocks += row
        self.num_slots += cache.block_tokens
        cache.promises.add_holders(row[cache.groups.num_whole :])
        return True

    def cover(self, start: int, stop: int) -> None:
        """Blocks for tokens [start, stop) where windows had none so far. There is room: they were
        promised."""
        cache = self._cache
        if not cache.windowed:
            return
        for row in range(start // cache.block_tokens, cache.groups.num_rows(stop)):
            for group in cache.windowed:
                place = row * cache.num_groups + group
                if self.blocks[place] == NO_BLOCK:
                    self.blocks[place : place + 1] = new = cache.allocate_blocks(1)
                    cache.promises.add_holders(new)

    def promise(self, num_blocks: int) -> None:
        """It holds at most so many blocks of windows from now on. The caller has checked that the
        rise is spare."""
        self._cache.promises.num_promised += num_blocks - self.num_promised
        self.num_promised = num_blocks

    def promise_no_more(self) -> None:
        """It computes nothing any more, and takes no block."""
        self.promise(self._num_in_windows)

    # -- giving blocks back -------------------------------------------------------------------

    def drop_unreachable(self, num_computed: int) -> None:
        """Let go of what none of the tokens after the computed ones can see. A launched forward
        does not read it either: it computes tokens after those. Nor is it lent: that is what is
        seen after the last token that a HANDOVER computes."""
        num_groups = self._cache.num_groups
        for group, first in enumerate(self._cache.groups.first_rows(num_computed)):
            place = (first - 1) * num_groups + group
            while place >= 0 and self.blocks[place] != NO_BLOCK:
                self._drop(place)
                place -= num_groups

    def give_back(self) -> None:
        """Let go of every block, tail first."""
        self.note_copied()
        for place in reversed(range(len(self.blocks))):
            self._drop(place)
        self.blocks.clear()
        self.num_slots = self.num_sealed = 0
        assert not self._twins
        self.promise(0)

    def _drop(self, place: int) -> None:
        block = self.blocks[place]
        if block == NO_BLOCK:
            return
        twin = self._twins.pop(place, None)
        if twin is not None:
            self._cache.let_go(twin)
        if place % self._cache.num_groups in self._cache.windowed:
            self._cache.promises.drop_holder(block)
        self._cache.let_go(block)
        self.blocks[place] = NO_BLOCK

    # -- sealing ------------------------------------------------------------------------------

    def seal(self, tokens: Tokens, num_computed: int, *, in_flight: bool) -> list[int]:
        """Make the full, computed blocks findable.

        Its own takes the place of an equal block that nobody holds; one that is held it shares, and
        its own are returned, for the caller to let go when no launched forward reads them any more.
        In a window it then keeps its own while one is launched (`in_flight`): there is no spare
        block to wait with. Under a lease it cannot move: it keeps its own and, where later blocks
        lean on it, holds the other as well. So sealing takes no room from anybody.
        """
        displaced: list[int] = []
        size, windows_stay = self._cache.block_tokens, self._is_lent or in_flight
        for index in range(self.num_sealed, num_computed // size):
            content = tokens(index * size, (index + 1) * size)
            entries = self._cache.find_row(self.chain, index, content)
            if entries is None:
                break  # the hash belongs to other tokens: the chain cannot be cached further
            for group, entry in enumerate(entries):
                place = index * self._cache.num_groups + group
                if self.blocks[place] == NO_BLOCK:
                    continue
                if entry is None or self._cache.blocks.is_cached(entry.block):
                    self._store(place, content, instead_of=entry)
                elif group not in self._cache.windowed or not windows_stay:
                    displaced += self._share(place, entry.block)
            self.num_sealed = index + 1
        return displaced

    def _store(self, place: int, content: list[int], *, instead_of: Entry | None) -> None:
        index, group = divmod(place, self._cache.num_groups)
        parent, own = self.chain[index : index + 2]
        entry = Entry(own, group, parent, index, content, self.blocks[place])
        self._cache.store_entry(entry, instead_of=instead_of)

    def _share(self, place: int, cached: int) -> list[int]:
        """Hold this one too; the block that it took the place of, if any."""
        self._cache.hold(cached)
        if self._is_lent:
            self._twins[place] = cached
            return []
        own = self.blocks[place]
        if place % self._cache.num_groups in self._cache.windowed:
            self._cache.promises.add_holders([cached])
            self._cache.promises.drop_holder(own)
        self.blocks[place] = cached
        return [own]
