"""Sealed blocks found again by their contents: the prefix cache over the block allocator.

Used by `engine.scheduler`, the one place where blocks are taken and given back. A block is found
by its chained hash and then by its tokens, so a hash collision costs a miss, not a wrong answer.

Whoever holds a cached block also holds every cached block before it in the chain, and gives them
back tail first. So the least recently used block never has a cached successor: evicting it keeps
the set prefix-closed, and every unheld block can be evicted. Pure.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.blocks import BlockAllocator
from engine.sequence import Sequence
from protocol.blocks import chain_seed, next_hash
from protocol.ids import BlockHash


@dataclass(frozen=True, slots=True)
class Stored:
    """These blocks can be found now, parents before children."""

    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """These blocks cannot be found any more, children before parents."""

    hashes: tuple[BlockHash, ...]


CacheEvent = Stored | Evicted


@dataclass(frozen=True, slots=True)
class Entry:
    """One sealed block. `parent` stands for all tokens before these."""

    hash: BlockHash
    parent: BlockHash
    index: int
    """Place in the chain; 0 has no parent block."""
    tokens: list[int]
    block: int


class PrefixCache:
    """Finds, hands out and takes back blocks. Every other owner goes through here."""

    def __init__(self, blocks: BlockAllocator, *, block_tokens: int, compat: str) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._compat = compat
        self._entries: dict[BlockHash, Entry] = {}
        self._by_block: dict[int, Entry] = {}
        self._idle: OrderedDict[int, Entry] = OrderedDict()
        """Unheld entries by block, least recently used first."""
        self._events: list[tuple[type[CacheEvent], BlockHash]] = []

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: empty ones and those it may evict."""
        return self.blocks.num_free + self.blocks.num_cached

    def seed(self, salt: str) -> BlockHash:
        """Where the hash chains of one tenant begin."""
        return chain_seed(compat=self._compat, salt=salt)

    def match(self, sequence: Sequence, *, max_tokens: int) -> list[int]:
        """Blocks that hold the KV of the first tokens, at most `max_tokens` of them; not yet
        held by the caller."""
        found: list[int] = []
        chain = sequence.chain
        for index in range(max_tokens // self.block_tokens):
            start = index * self.block_tokens
            tokens = sequence.tokens(start, start + self.block_tokens)
            if len(chain) == index + 1:
                chain.append(next_hash(chain[index], tokens))
            entry = self._entries.get(chain[index + 1])
            if entry is None or not _same(entry, chain[index], tokens):
                break
            found.append(entry.block)
        return found

    def num_held(self, matched: Seq[int]) -> int:
        """Of matched blocks, those that somebody holds already: sharing them costs no room."""
        return sum(1 for block in matched if self.blocks.refs(block))

    def take(self, matched: Seq[int], *, num_new: int) -> list[int]:
        """Hold the matched blocks and `num_new` empty ones. The caller has checked the room:
        `num_new` plus the unheld ones of `matched` is at most `num_available`."""
        for block in matched:
            self.blocks.acquire(block)
            self._idle.pop(block, None)
        while self.blocks.num_free < num_new:
            self._evict()
        return [*matched, *(self.blocks.allocate() for _ in range(num_new))]

    def give_back(self, sequence: Sequence) -> None:
        """Let go of every block of the sequence, tail first."""
        for index in reversed(range(len(sequence.block_table))):
            twin = sequence.twins.get(index)
            if twin is not None:
                self._release(twin)
            self._release(sequence.block_table[index])
        sequence.block_table.clear()
        sequence.twins.clear()

    def hold(self, block: int) -> None:
        """Keep a block that a sequence owns from being given to another, until `let_go`."""
        self.blocks.acquire(block)

    def let_go(self, block: int) -> None:
        self._release(block)

    def seal(self, sequence: Sequence) -> list[int]:
        """Make the full, computed blocks of the sequence findable.

        Its own takes the place of an equal block that nobody holds; one that is held it shares, and
        its own are returned, for the caller to `let_go` when no launched forward reads them any
        more. Under a lease it cannot move, so it keeps its own and holds the other as well. So
        sealing takes no room from anybody.
        """
        displaced: list[int] = []
        for index in range(sequence.num_sealed, sequence.num_computed // self.block_tokens):
            start = index * self.block_tokens
            tokens = sequence.tokens(start, start + self.block_tokens)
            if len(sequence.chain) == index + 1:
                sequence.chain.append(next_hash(sequence.chain[index], tokens))
            if not self._seal_block(sequence, index, tokens, displaced):
                break
            sequence.num_sealed = index + 1
        return displaced

    def _seal_block(
        self, sequence: Sequence, index: int, tokens: list[int], displaced: list[int]
    ) -> bool:
        """False if the hash belongs to other tokens: this chain cannot be cached further."""
        block = sequence.block_table[index]
        parent, own = sequence.chain[index], sequence.chain[index + 1]
        entry = self._entries.get(own)
        if entry is not None and not _same(entry, parent, tokens):
            return False
        if entry is None or entry.block in self._idle:
            self._store(Entry(own, parent, index, tokens, block), instead_of=entry)
            return True
        self.blocks.acquire(entry.block)
        if sequence.leases:
            sequence.twins[index] = entry.block
        else:
            sequence.block_table[index] = entry.block
            displaced.append(block)
        return True

    def take_events(self) -> list[CacheEvent]:
        """What was stored and evicted since the last call, in order."""
        grouped: list[CacheEvent] = []
        start = 0
        raw = self._events
        for stop in range(1, len(raw) + 1):
            if stop < len(raw) and raw[stop][0] is raw[start][0]:
                continue
            kind, _ = raw[start]
            grouped.append(kind(tuple(own for _, own in raw[start:stop])))
            start = stop
        self._events = []
        return grouped

    def check(self) -> None:
        """Raise AssertionError if the cache and the allocator disagree."""
        self.blocks.check()
        assert len(self._entries) == len(self._by_block), "two entries share a block"
        assert len(self._idle) == self.blocks.num_cached, "an unheld entry is not in the queue"
        for entry in self._entries.values():
            assert self._by_block[entry.block] is entry, "an entry lost its block"
            assert (entry.block in self._idle) == (self.blocks.refs(entry.block) == 0)
            parent = self._entries.get(entry.parent)
            assert (parent is None) == (entry.index == 0), "the set is not prefix-closed"
            if parent is not None and entry.block not in self._idle:
                assert parent.block not in self._idle, "a held block has an unheld parent"

    def _store(self, entry: Entry, *, instead_of: Entry | None) -> None:
        """`instead_of` an equal one that nobody holds."""
        if instead_of is None:
            self._events.append((Stored, entry.hash))
        else:
            del self._idle[instead_of.block]
            del self._by_block[instead_of.block]
            self.blocks.forget(instead_of.block)
        self.blocks.keep(entry.block)
        self._entries[entry.hash] = self._by_block[entry.block] = entry

    def _release(self, block: int) -> None:
        if self.blocks.release(block):
            self._idle[block] = self._by_block[block]

    def _evict(self) -> None:
        block, entry = self._idle.popitem(last=False)
        del self._entries[entry.hash]
        del self._by_block[block]
        self._events.append((Evicted, entry.hash))
        self.blocks.forget(block)


def _same(entry: Entry, parent: BlockHash, tokens: list[int]) -> bool:
    return entry.parent == parent and entry.tokens == tokens
