"""Who holds which block of the pool. Pure.

A block is always exactly one of free (empty), cached (kept for its contents, held by nobody) or
owned (held).
"""

from collections import deque
from collections.abc import Collection, MutableSequence, Sequence

from protocol.messages import Blocks


class BlockAllocator:
    """Counts references. `generations[block]` is bumped each time a block gets new contents, so
    a reader that expects older contents can tell."""

    def __init__(self, num_blocks: int, *, generations: MutableSequence[int]) -> None:
        if num_blocks <= 0:
            raise ValueError(f"num_blocks is {num_blocks}; a pool needs at least one block")
        if len(generations) < num_blocks:
            raise ValueError(f"{len(generations)} generations for {num_blocks} blocks")
        self.num_blocks = num_blocks
        self.generations = generations
        self._refs = [0] * num_blocks
        self._kept = [False] * num_blocks
        self._free = deque(range(num_blocks))
        self.num_cached = 0

    @property
    def num_free(self) -> int:
        """Empty blocks."""
        return len(self._free)

    @property
    def num_owned(self) -> int:
        return self.num_blocks - len(self._free) - self.num_cached

    def refs(self, block: int) -> int:
        return self._refs[block]

    def is_cached(self, block: int) -> bool:
        return self._kept[block] and not self._refs[block]

    def allocate(self) -> int:
        """An empty block, held once. The caller has made sure there is one."""
        block = self._free.popleft()
        self.generations[block] += 1
        self._refs[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """Hold an owned or cached block once more."""
        if self._refs[block] == 0:
            assert self._kept[block], f"block {block} is free and cannot be shared"
            self.num_cached -= 1
        self._refs[block] += 1

    def release(self, block: int) -> bool:
        """Give up one hold; True when that leaves the block cached."""
        assert self._refs[block] > 0, f"block {block} is released but nobody holds it"
        self._refs[block] -= 1
        if self._refs[block]:
            return False
        if self._kept[block]:
            self.num_cached += 1
            return True
        self._free.append(block)
        return False

    def keep(self, block: int) -> None:
        """From now on an unheld block is cached, not free."""
        assert self._refs[block] > 0 and not self._kept[block], f"block {block} cannot be kept"
        self._kept[block] = True

    def forget(self, block: int) -> None:
        """The contents of a kept block are no longer wanted."""
        assert self._kept[block], f"block {block} is not kept"
        self._kept[block] = False
        if self._refs[block] == 0:
            self.num_cached -= 1
            self._free.append(block)

    def counts(self, *, leased: int) -> Blocks:
        free, cached = len(self._free), self.num_cached
        return Blocks(total=self.num_blocks, free=free, cached=cached, leased=leased)

    def check(self) -> None:
        """As `check_books`, of these."""
        check_books(free=self._free, refs=self._refs, kept=self._kept, num_cached=self.num_cached)


def check_books(
    *, free: Collection[int], refs: Sequence[int], kept: Sequence[bool], num_cached: int
) -> None:
    """Raise AssertionError unless each block is exactly one of free, cached, owned. `refs` and
    `kept` are by block: its holders, and whether it is cached when it has none."""
    empty = set(free)
    assert len(empty) == len(free), "a block is free twice"
    cached = {block for block, keeps in enumerate(kept) if keeps and not refs[block]}
    owned = {block for block, num_holders in enumerate(refs) if num_holders}
    assert min(refs) >= 0, "a block has fewer than no holders"
    assert not empty & owned and not empty & cached, "a free block is held or kept"
    assert len(empty) + len(cached) + len(owned) == len(refs), "a block is lost"
    assert len(cached) == num_cached, "cached blocks are miscounted"
