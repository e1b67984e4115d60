"""Sealed blocks found again by their contents: the prefix cache over the block allocator.

A block is found by its chained hash and its KV group, and then by its tokens, so a hash collision
costs a miss, not a wrong answer. Block tables are flat, as of `engine.batch.Chunk`: `i *
num_groups + group`.

In a group without a window whoever holds a cached block also holds every cached block before it in
the chain, and gives them back tail first. So the least recently used block never has a cached
successor: evicting it keeps the group prefix-closed. Of a group with a window only the last blocks
are held and needed, and any may go. Every unheld block can be evicted.

Blocks of windows are taken as a sequence is computed and let go as its windows move on. It is
promised at admission as many as it will ever hold, so that it never waits for one: shared or not,
each holder's promise counts, since what it lets go may stay with another. Pure.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal

from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.windows import NO_BLOCK, Reach, Window
from engine.sequence import Sequence
from protocol.blocks import BlockChange, chain_seed, next_hash
from protocol.ids import BlockHash

Key = tuple[BlockHash, int]
"""Hash and group."""


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


class PrefixCache:
    """Finds, hands out and takes back blocks. Every other owner goes through here."""

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        block_tokens: int,
        compat: str,
        windows: Seq[Window] = (None,),
    ) -> None:
        """`windows`: of each KV group, those without one first."""
        if blocks.num_blocks < len(windows):
            raise ValueError(
                f"num_blocks is {blocks.num_blocks}; a token needs one in each of "
                f"{len(windows)} KV groups"
            )
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.reach = Reach(windows=tuple(windows), block_tokens=block_tokens)
        self.num_groups = self.reach.num_groups
        self._num_whole = self.reach.num_whole
        self._compat = compat
        self._entries: dict[Key, Entry] = {}
        self._by_block: dict[int, Entry] = {}
        self._idle: OrderedDict[int, Entry] = OrderedDict()
        """Unheld entries by block, least recently used first."""
        self._changes: list[tuple[Literal["stored", "evicted"], BlockHash]] = []
        self._num_promised = 0
        self._in_windows: Counter[int] = Counter()
        """Blocks that sequences hold in groups with a window, and how many do."""

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: empty ones and those it may evict."""
        return self.blocks.num_free + self.blocks.num_cached

    @property
    def num_spare(self) -> int:
        """Of the available blocks, those that no sequence was promised."""
        return self.num_available - self._num_promised + len(self._in_windows)

    def seed(self, salt: str) -> BlockHash:
        """Where the hash chains of one tenant begin."""
        return chain_seed(compat=self._compat, salt=salt)

    def match(self, sequence: Sequence, *, max_tokens: int, resume_at: int = 0) -> list[int]:
        """The table of the most first token blocks, of at most `max_tokens` tokens, that are
        cached as far as it takes to go on after them; the blocks are not yet held by the caller.

        A group with a window has NO_BLOCK where it is not needed: out of reach from the end of
        the match, or from `resume_at` if that is later and something else brings the rest.
        """
        found: list[int] = []
        matched, firsts = 0, self.reach.firsts(resume_at)
        ends = [0] * self.num_groups
        """Of each group, one past the last token block that is lacking."""
        for index in range(max_tokens // self.block_tokens):
            row = self._row(sequence, index)
            found += row
            if NO_BLOCK in row[: self._num_whole]:
                break
            if self._num_whole < self.num_groups:
                ends = [index + 1 if b == NO_BLOCK else e for b, e in zip(row, ends, strict=True)]
                reach = self.reach.firsts(max((index + 1) * self.block_tokens, resume_at))
                if any(end > first for end, first in zip(ends, reach, strict=True)):
                    continue
                firsts = reach
            matched = index + 1
        table = self.reach.seen(found[: matched * self.num_groups], firsts)
        while table and set(table[-self.num_groups :]) == {NO_BLOCK}:
            del table[-self.num_groups :]  # out of reach, but not cached
        return table

    def _row(self, sequence: Sequence, index: int) -> list[int]:
        """The cached blocks of one token block, one a group; NO_BLOCK for those lacking."""
        tokens = self._tokens(sequence, index)
        parent, own = sequence.chain[index], sequence.chain[index + 1]
        entries = [self._entries.get((own, group)) for group in range(self.num_groups)]
        return [e.block if e and _same(e, parent, tokens) else NO_BLOCK for e in entries]

    def _tokens(self, sequence: Sequence, index: int) -> list[int]:
        """Tokens of one full token block; its hash is in the chain afterwards."""
        start = index * self.block_tokens
        tokens = sequence.tokens(start, start + self.block_tokens)
        if len(sequence.chain) == index + 1:
            sequence.chain.append(next_hash(sequence.chain[index], tokens))
        return tokens

    def num_unheld(self, matched: Seq[int]) -> int:
        """Of matched blocks, those that take room when they are held: nobody holds them yet. Those
        of windows are part of a promise."""
        whole = range(self._num_whole)
        return sum(
            1 for g in whole for b in matched[g :: self.num_groups] if not self.blocks.refs(b)
        )

    def take(self, matched: Seq[int], *, num_new: int) -> list[int]:
        """Hold the matched blocks and `num_new` empty ones. The caller has checked the room:
        `num_new` plus the unheld ones of `matched` is at most `num_available`."""
        for block in matched:
            if block != NO_BLOCK:
                self.blocks.acquire(block)
                self._idle.pop(block, None)
        while self.blocks.num_free < num_new:
            self._evict()
        return [*matched, *(self.blocks.allocate() for _ in range(num_new))]

    def take_table(self, sequence: Sequence, matched: Seq[int], lacking: Seq[bool]) -> None:
        """Give the sequence its table: the matched blocks, and new ones where they are `lacking`.
        What it is promised of them was promised before."""
        taken = self.take(matched, num_new=sum(lacking))
        new = iter(taken[len(matched) :])
        table = taken[: len(matched)] + [next(new) if lacks else NO_BLOCK for lacks in lacking]
        sequence.block_table = table
        for group in range(self._num_whole, self.num_groups):
            self._in_windows.update(b for b in table[group :: self.num_groups] if b != NO_BLOCK)

    def add_row(self, sequence: Sequence) -> None:
        """One more token block, in every group; the caller has checked the room."""
        row = self.take((), num_new=self.num_groups)
        sequence.block_table += row
        self._in_windows.update(row[self._num_whole :])

    def extend(self, sequence: Sequence, start: int, stop: int) -> None:
        """Blocks for tokens from `start` to `stop` where windows had none so far. There is room:
        the sequence was promised it."""
        if self._num_whole == self.num_groups:
            return
        for row in range(start // self.block_tokens, self.reach.num_rows(stop)):
            for group in range(self._num_whole, self.num_groups):
                place = row * self.num_groups + group
                if sequence.block_table[place] == NO_BLOCK:
                    (block,) = self.take((), num_new=1)
                    sequence.block_table[place] = block
                    self._in_windows[block] += 1

    def promise(self, sequence: Sequence, num_blocks: int) -> None:
        """It holds at most so many blocks of windows from now on. The caller has checked that the
        rise is spare."""
        self._num_promised += num_blocks - sequence.num_promised
        sequence.num_promised = num_blocks

    def promise_no_more(self, sequence: Sequence) -> None:
        """It computes nothing any more, and takes no block."""
        self.promise(sequence, self._num_in_windows(sequence))

    def keeps_promise(self, sequence: Sequence) -> bool:
        """Whether it holds no more than it was promised."""
        return self._num_in_windows(sequence) <= sequence.num_promised

    def _num_in_windows(self, sequence: Sequence) -> int:
        rest = range(self._num_whole, self.num_groups)
        return sum(
            1 for g in rest for b in sequence.block_table[g :: self.num_groups] if b != NO_BLOCK
        )

    def offered(self, sequence: Sequence) -> tuple[int, ...]:
        """The table as it is shown to whoever lends or fetches: of a HANDOVER what it lends."""
        table = sequence.block_table
        if sequence.leases:
            table = self.reach.seen(table, self.reach.firsts(sequence.num_lent_tokens))
        return tuple(table)

    def drop_unreachable(self, sequence: Sequence) -> None:
        """Let go of what none of its tokens to come can see. A launched forward does not read it
        either: it computes tokens after `num_computed`. Nor is it lent: that is what is seen after
        the last token that a HANDOVER computes."""
        groups = self.num_groups
        firsts = self.reach.firsts(sequence.num_computed)
        for group, first in enumerate(firsts):
            place = (first - 1) * groups + group
            while place >= 0 and sequence.block_table[place] != NO_BLOCK:
                self._drop(sequence, place)
                place -= groups

    def give_back(self, sequence: Sequence) -> None:
        """Let go of every block of the sequence, tail first."""
        for place in reversed(range(len(sequence.block_table))):
            self._drop(sequence, place)
        sequence.block_table.clear()
        assert not sequence.twins
        self.promise(sequence, 0)

    def hold(self, block: int) -> None:
        """Keep a block that a sequence owns from being given to another, until `let_go`."""
        self.blocks.acquire(block)

    def let_go(self, block: int) -> None:
        self._release(block)

    def seal(self, sequence: Sequence) -> list[int]:
        """Make the full, computed blocks of the sequence findable.

        Its own takes the place of an equal block that nobody holds; one that is held it shares, and
        its own are returned, for the caller to `let_go` when no launched forward reads them any
        more. In a window it then keeps its own while one is launched: there is no spare block to
        wait with. Under a lease it cannot move: it keeps its own and, where later blocks lean on
        it, holds the other as well. So sealing takes no room from anybody.
        """
        displaced: list[int] = []
        for index in range(sequence.num_sealed, sequence.num_computed // self.block_tokens):
            tokens = self._tokens(sequence, index)
            if not self._seal_row(sequence, index, tokens, displaced):
                break
            sequence.num_sealed = index + 1
        return displaced

    def _seal_row(
        self, sequence: Sequence, index: int, tokens: list[int], displaced: list[int]
    ) -> bool:
        """False if the hash belongs to other tokens: this chain cannot be cached further."""
        parent, own = sequence.chain[index], sequence.chain[index + 1]
        entries = [self._entries.get((own, group)) for group in range(self.num_groups)]
        if any(entry is not None and not _same(entry, parent, tokens) for entry in entries):
            return False
        pinned = sequence.leases or sequence.in_flight
        for group, entry in enumerate(entries):
            place = index * self.num_groups + group
            block = sequence.block_table[place]
            if block == NO_BLOCK:
                continue
            if entry is None or entry.block in self._idle:
                self._store(Entry(own, group, parent, index, tokens, block), instead_of=entry)
            elif group < self._num_whole or not pinned:
                displaced += self._share(sequence, place, entry.block)
        return True

    def _store(self, entry: Entry, *, instead_of: Entry | None) -> None:
        """`instead_of` an equal one that nobody holds."""
        if instead_of is not None:
            del self._idle[instead_of.block]
            del self._by_block[instead_of.block]
            self.blocks.forget(instead_of.block)
        elif entry.group == 0:
            self._changes.append(("stored", entry.hash))
        self.blocks.keep(entry.block)
        self._entries[entry.hash, entry.group] = self._by_block[entry.block] = entry

    def _share(self, sequence: Sequence, place: int, cached: int) -> list[int]:
        """The sequence holds this one too; the block that it took the place of, if any."""
        self.blocks.acquire(cached)
        if sequence.leases:
            sequence.twins[place] = cached
            return []
        own = sequence.block_table[place]
        if place % self.num_groups >= self._num_whole:
            self._in_windows[cached] += 1
            self._leave(own)
        sequence.block_table[place] = cached
        return [own]

    def _leave(self, block: int) -> None:
        """One sequence less holds it in a window."""
        self._in_windows[block] -= 1
        if not self._in_windows[block]:
            del self._in_windows[block]

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
            if entry.group < self._num_whole:
                self._check_parent(entry)

    def _check_parent(self, entry: Entry) -> None:
        parent = self._entries.get((entry.parent, entry.group))
        assert (parent is None) == (entry.index == 0), "the group is not prefix-closed"
        if parent is not None and entry.block not in self._idle:
            assert parent.block not in self._idle, "a held block has an unheld parent"

    def _drop(self, sequence: Sequence, place: int) -> None:
        block = sequence.block_table[place]
        if block == NO_BLOCK:
            return
        twin = sequence.twins.pop(place, None)
        if twin is not None:
            self._release(twin)
        if place % self.num_groups >= self._num_whole:
            self._leave(block)
        self._release(block)
        sequence.block_table[place] = NO_BLOCK

    def _release(self, block: int) -> None:
        if self.blocks.release(block):
            self._idle[block] = self._by_block[block]

    def _evict(self) -> None:
        block, entry = self._idle.popitem(last=False)
        del self._entries[entry.hash, entry.group]
        del self._by_block[block]
        if entry.group == 0:
            self._changes.append(("evicted", entry.hash))
        self.blocks.forget(block)


def _same(entry: Entry, parent: BlockHash, tokens: list[int]) -> bool:
    return entry.parent == parent and entry.tokens == tokens
