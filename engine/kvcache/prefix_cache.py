"""Sealed blocks found again by their contents: the prefix cache over the block allocator.

A block is found by its chained hash and its KV group, and then by its tokens, so a hash collision
costs a miss, not a wrong answer. Tables are flat, as of `engine.batch.Chunk`.

In a group without a window whoever holds a cached block also holds every cached block before it in
the chain, and gives them back tail first. So the least recently used block never has a cached
successor: evicting it keeps the group prefix-closed. Of a group with a window only the last blocks
are held and needed, and any may go. Every unheld block can be evicted. Pure.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, Protocol

from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.windows import NO_BLOCK, KvGroups, Window
from protocol.blocks import BlockChange, chain_seed, next_hash, prompt_reach
from protocol.ids import BlockHash

Key = tuple[BlockHash, int]
"""Hash and group."""
Tokens = Callable[[int, int], list[int]]
"""A sequence's tokens [start, stop)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One sealed block of one group. `parent` stands for all tokens before these."""

    hash: BlockHash
    group: int
    parent: BlockHash
    index: int
    """Place in the chain; 0 has no parent block."""
    tokens: list[int]
    block: int


class Tier(Protocol):
    """Memory below the pool, for blocks whose place in the pool is needed. There is none yet."""

    def take_over(self, entry: Entry) -> None:
        """The entry is about to be evicted: copy its block, or do without. The block may have other
        contents once this has returned."""


class Promises:
    """What was promised of the blocks of windows, over all block tables.

    Blocks of windows are taken as a sequence is computed and let go as its windows move on. It is
    promised at admission as many as it will ever hold, so that it never waits for one: shared or
    not, each holder's promise counts, since what it lets go may stay with another.
    """

    def __init__(self) -> None:
        self.num_promised = 0
        self._holders: Counter[int] = Counter()
        """By block, the tables that hold it in a group with a window."""

    @property
    def num_unused(self) -> int:
        """Blocks promised and not yet taken. What several hold is taken once."""
        return self.num_promised - len(self._holders)

    def add_holders(self, blocks: Iterable[int]) -> None:
        self._holders.update(blocks)

    def drop_holder(self, block: int) -> None:
        """One table less holds it in a window."""
        self._holders[block] -= 1
        if not self._holders[block]:
            del self._holders[block]


class PrefixCache:
    """Finds, hands out and takes back blocks. Every other owner goes through here."""

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        block_tokens: int,
        compat: str,
        windows: Seq[Window] = (None,),
        dynamic_after: int | None = None,
        tier: Tier | None = None,
    ) -> None:
        """`windows`: of each KV group, those without one first; `dynamic_after`: as of
        `protocol.blocks.prompt_reach`; `tier` is asked before a block is evicted."""
        if blocks.num_blocks < len(windows):
            raise ValueError(
                f"num_blocks is {blocks.num_blocks}; a token needs one in each of "
                f"{len(windows)} KV groups"
            )
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.groups = KvGroups(windows=tuple(windows), block_tokens=block_tokens)
        self.num_groups = self.groups.num_groups
        self.windowed = range(self.groups.num_whole, self.num_groups)
        """Groups with a window."""
        self.promises = Promises()
        self._compat, self._dynamic_after = compat, dynamic_after
        self._tier = tier
        self._entries: dict[Key, Entry] = {}
        self._by_block: dict[int, Entry] = {}
        self._idle: OrderedDict[int, Entry] = OrderedDict()
        """Unheld entries by block, least recently used first."""
        self._changes: list[tuple[Literal["stored", "evicted"], BlockHash]] = []

    @property
    def num_available(self) -> int:
        """Blocks that `allocate_blocks` can give: empty ones and those it may evict."""
        return self.blocks.num_free + self.blocks.num_cached

    @property
    def num_spare(self) -> int:
        """Of the available blocks, those that nobody was promised."""
        return self.num_available - self.promises.num_unused

    def seed(self, *, salt: str, adapter: str = "", num_prompt: int = 0) -> BlockHash:
        """Where the hash chains of one tenant and adapter begin, for prompts of that length."""
        reach = prompt_reach(num_prompt, dynamic_after=self._dynamic_after)
        return chain_seed(compat=self._compat, salt=salt, adapter=adapter, reach=reach)

    def match(
        self, chain: list[BlockHash], tokens: Tokens, *, max_tokens: int, resume_at: int = 0
    ) -> list[int]:
        """The table of the most first token blocks, of at most `max_tokens` tokens, that are
        cached as far as it takes to go on after them; the blocks are not yet held by the caller.

        A group with a window has NO_BLOCK where it is not needed: out of sight from the end of
        the match, or from `resume_at` if that is later and something else brings the rest.
        """
        found: list[int] = []
        matched, firsts = 0, self.groups.first_rows(resume_at)
        ends = [0] * self.num_groups
        """Of each group, one past the last token block that is lacking."""
        for index in range(max_tokens // self.block_tokens):
            row = self._row(chain, tokens, index)
            found += row
            if NO_BLOCK in row[: self.groups.num_whole]:
                break
            if self.windowed:
                ends = [index + 1 if b == NO_BLOCK else e for b, e in zip(row, ends, strict=True)]
                needed = self.groups.first_rows(max((index + 1) * self.block_tokens, resume_at))
                if any(end > first for end, first in zip(ends, needed, strict=True)):
                    continue
                firsts = needed
            matched = index + 1
        table = self.groups.mask_unseen(found[: matched * self.num_groups], firsts)
        while table and set(table[-self.num_groups :]) == {NO_BLOCK}:
            del table[-self.num_groups :]  # unseen, but not cached
        return table

    def _row(self, chain: list[BlockHash], tokens: Tokens, index: int) -> list[int]:
        """The cached blocks of one token block, one a group; NO_BLOCK for those lacking."""
        start = index * self.block_tokens
        entries = self.find_row(chain, index, tokens(start, start + self.block_tokens))
        if entries is None:
            return [NO_BLOCK] * self.num_groups
        return [NO_BLOCK if entry is None else entry.block for entry in entries]

    def find_row(
        self, chain: list[BlockHash], index: int, content: list[int]
    ) -> list[Entry | None] | None:
        """What is cached of token block `index`, by group; None if its hash belongs to other tokens
        than `content`. The hash is in the chain afterwards."""
        parent = chain[index]
        if len(chain) == index + 1:
            chain.append(next_hash(parent, content))
        own = chain[index + 1]
        entries = [self._entries.get((own, group)) for group in range(self.num_groups)]
        for entry in entries:
            if entry is not None and (entry.parent != parent or entry.tokens != content):
                return None
        return entries

    def num_unheld(self, matched: Seq[int]) -> int:
        """Of matched blocks, those that take room when they are held: nobody holds them yet. Those
        of windows are part of a promise."""
        whole = range(self.groups.num_whole)
        return sum(
            1 for g in whole for b in matched[g :: self.num_groups] if not self.blocks.refs(b)
        )

    def acquire_blocks(self, matched: Iterable[int]) -> None:
        """Hold what `match` found."""
        for block in matched:
            if block != NO_BLOCK:
                self.hold(block)
                self._idle.pop(block, None)

    def allocate_blocks(self, num_blocks: int) -> list[int]:
        """Empty blocks, each held once; at most `num_available`, for which the least recently used
        are evicted."""
        while self.blocks.num_free < num_blocks:
            self._evict()
        return [self.blocks.allocate() for _ in range(num_blocks)]

    def hold(self, block: int) -> None:
        """Keep a block that somebody owns from being given to another, until `let_go`."""
        self.blocks.acquire(block)

    def let_go(self, block: int) -> None:
        if self.blocks.release(block):
            self._idle[block] = self._by_block[block]

    def store_entry(self, entry: Entry, *, instead_of: Entry | None) -> None:
        """Make a held block findable; `instead_of` an equal one that nobody holds."""
        if instead_of is not None:
            del self._idle[instead_of.block]
            del self._by_block[instead_of.block]
            self.blocks.forget(instead_of.block)
        elif entry.group == 0:
            self._changes.append(("stored", entry.hash))
        self.blocks.keep(entry.block)
        self._entries[entry.hash, entry.group] = self._by_block[entry.block] = entry

    @property
    def is_prefix_closed(self) -> bool:
        """After each change told, the parent of every block told of is there too: true of a first
        group without a window, whose blocks are stored and evicted in that order."""
        return self.groups.num_whole > 0

    @property
    def stored_hashes(self) -> set[BlockHash]:
        """What all changes add up to."""
        return {own for own, group in self._entries if group == 0}

    def take_changes(self) -> list[BlockChange]:
        """What can be found since the last call, and what cannot any more, in order: parents are
        stored before their children and, without a window, evicted after them.

        Told of the first group's blocks, without a window if the model has such layers: a router
        that counts them may count a prefix as cached whose end the other groups have evicted. With
        windows alone it may count too few, since early blocks go first and are not needed.
        """
        changes, self._changes = self._changes, []
        return [
            BlockChange(kind=kind, hashes=tuple(own for _, own in same))
            for kind, same in groupby(changes, key=itemgetter(0))
        ]

    def check(self) -> None:
        """Raise AssertionError if the cache and the allocator disagree."""
        self.blocks.check()
        assert self.num_spare >= 0, "more is promised than there is"
        assert len(self._entries) == len(self._by_block), "two entries share a block"
        assert len(self._idle) == self.blocks.num_cached, "an unheld entry is not in the queue"
        for key, entry in self._entries.items():
            assert key == (entry.hash, entry.group) and self._by_block[entry.block] is entry
            assert (entry.block in self._idle) == (self.blocks.refs(entry.block) == 0)
            if entry.group not in self.windowed:
                self._check_parent(entry)

    def _check_parent(self, entry: Entry) -> None:
        parent = self._entries.get((entry.parent, entry.group))
        assert (parent is None) == (entry.index == 0), "the group is not prefix-closed"
        if parent is not None and entry.block not in self._idle:
            assert parent.block not in self._idle, "a held block has an unheld parent"

    def _evict(self) -> None:
        block, entry = self._idle.popitem(last=False)
        if self._tier is not None:
            self._tier.take_over(entry)
        del self._entries[entry.hash, entry.group]
        del self._by_block[block]
        if entry.group == 0:
            self._changes.append(("evicted", entry.hash))
        self.blocks.forget(block)
