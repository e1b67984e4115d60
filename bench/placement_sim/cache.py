"""A worker's prefix cache: blocks by number, the least recently used given up first, leaves first.

Output tokens take room while they are wanted and are not found again: a trace does not say which
blocks they become.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

Tell = Callable[[Literal["stored", "evicted"], Sequence[int]], None]


class PrefixCache:
    """`num_blocks` None: nothing is ever given up. `tell` hears of all that changes."""

    def __init__(self, *, num_blocks: int | None, tell: Tell) -> None:
        self._num_blocks = num_blocks
        self._tell = tell
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Cached blocks that nobody holds, the least recently used first."""
        self._holders: dict[int, int] = {}
        self._num_private = 0

    def __contains__(self, block: int) -> bool:
        return block in self._holders or block in self._idle

    def match_prefix(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are here."""
        for depth, block in enumerate(blocks):
            if block not in self:
                return depth
        return len(blocks)

    @property
    def num_held(self) -> int:
        return len(self._holders) + self._num_private

    def take_room(self, blocks: Sequence[int], *, num_needed: int) -> bool:
        """Hold these cached blocks and keep `num_needed` places beside them; False, and nothing
        held, where there is no room."""
        if self._num_blocks is not None:
            idle = sum(block in self._idle for block in blocks)
            if self.num_held + idle + num_needed > self._num_blocks:
                return False
        self._hold(blocks)
        self._num_private += num_needed
        self._evict()
        return True

    def seal_blocks(self, blocks: Sequence[int]) -> None:
        """Blocks in private places become findable and are held; of one that another sealed in the
        meantime the place is free again."""
        new = [block for block in blocks if block not in self]
        self._hold(blocks)
        self._num_private -= len(blocks)
        if new:
            self._tell("stored", new)

    def add_idle(self, blocks: Sequence[int]) -> None:
        """Blocks that came from elsewhere for someone who waits here."""
        new = [block for block in blocks if block not in self]
        self._idle.update(dict.fromkeys(reversed(new)))
        if new:
            self._tell("stored", new)
        self._evict()

    def give_back(self, blocks: Sequence[int], *, num_private: int) -> None:
        """What `take_room` and `seal_blocks` gave, the tail first, so that leaves go first."""
        self._num_private -= num_private
        for block in reversed(blocks):
            holders = self._holders[block] - 1
            if holders:
                self._holders[block] = holders
            else:
                del self._holders[block]
                self._idle[block] = None

    def _hold(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._idle.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def _evict(self) -> None:
        if self._num_blocks is None:
            return
        gone = []
        while self._idle and self.num_held + len(self._idle) > self._num_blocks:
            gone.append(self._idle.popitem(last=False)[0])
        if gone:
            self._tell("evicted", gone)
