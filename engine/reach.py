"""How far back a model's layers see, counted in blocks of a sequence's table.

Arithmetic that `engine.prefix` and `engine.scheduler` share, on KV groups (`engine.kvgroups`) and
flat tables (`engine.batch.Chunk`): place `row * num_groups + group`, a row a token block. Pure.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.kvgroups import NO_BLOCK, Window, first_block


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    windows: tuple[Window, ...]
    """Of each KV group, those without one first."""
    block_tokens: int

    def __post_init__(self) -> None:
        assert None not in self.windows[self.num_whole :], "groups without a window come first"

    @property
    def num_groups(self) -> int:
        return len(self.windows)

    @property
    def num_whole(self) -> int:
        """Groups without a window, which see the whole sequence."""
        return self.windows.count(None)

    def num_rows(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def firsts(self, num_tokens: int) -> list[int]:
        """Of each group, the first row kept of a sequence with so many computed tokens."""
        return [first_block(num_tokens, w, block_tokens=self.block_tokens) for w in self.windows]

    def seen(self, table: Seq[int], firsts: Seq[int]) -> list[int]:
        """The table without the blocks before each group's first row."""
        groups = self.num_groups
        return [
            block if place // groups >= firsts[place % groups] else NO_BLOCK
            for place, block in enumerate(table)
        ]

    def lacking(self, num_matched: int, *, num_tokens: int, named: bool) -> list[bool]:
        """Of the table's places after so many matched rows, those that need a block at admission.

        Without a window all do. With one those that a lease or a fetch must name do, which is
        what is seen after the last token; the others get theirs as they are computed.
        """
        num_rows = self.num_rows(num_tokens)
        firsts = [
            first if window is None or named else num_rows
            for first, window in zip(self.firsts(num_tokens), self.windows, strict=True)
        ]
        return [row >= first for row in range(num_matched, num_rows) for first in firsts]

    def most_held(self, num_tokens: int, *, num_ahead: int, lends: bool = False) -> int:
        """Blocks of groups with a window that a sequence of so many tokens holds at most.

        `num_ahead` of its tokens may be launched and not recorded: what they see and what they
        write is held. `lends`: so is, from the beginning, what is seen after the last one.
        """
        size, num_rows, total = self.block_tokens, self.num_rows(num_tokens), 0
        for window in self.windows[self.num_whole :]:
            assert window is not None
            moving = -(-(window - 1) // size) + 1 + (size + num_ahead - 2) // size
            lent = num_rows - first_block(num_tokens, window, block_tokens=size) if lends else 0
            total += min(num_rows, moving + lent)
        return total
