"""What was promised of the blocks of windows, over all block tables. Pure.

Blocks of windows are taken as a sequence is computed and let go as its windows move on. It is
promised at admission as many as it will ever hold, so that it never waits for one: shared or not,
each holder's promise counts, since what it lets go may stay with another.
"""

from collections import Counter
from collections.abc import Iterable


class Promises:
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
