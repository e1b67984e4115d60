"""Which layers share a block: KV groups, so that a window's layers can free what they left behind.

A block holds the KV of `block_tokens` tokens for the layers of one group; every group has the same
number of layers, so that all blocks of a pool have one size and any group can use any (the idea is
that of vLLM's hybrid KV cache manager). Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Window = int | None

NO_BLOCK = -1
"""In a block table, where a group has none: nobody sees those tokens any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """Layers whose KV lies in the same blocks."""

    window: Window
    """Last tokens that a token sees, itself included; None: all."""
    layers: tuple[int, ...]


def group_layers(windows: Sequence[Window]) -> tuple[KvGroup, ...]:
    """Groups of layers with equal windows (one a layer), as many layers in each as the rarest
    window has; a window's last group may have fewer, and leaves room in its blocks. Full attention
    first."""
    by_window: dict[Window, list[int]] = {}
    for layer, window in enumerate(windows):
        by_window.setdefault(window, []).append(layer)
    size = min(len(layers) for layers in by_window.values())
    groups = [
        KvGroup(window=window, layers=tuple(layers[start : start + size]))
        for window, layers in by_window.items()
        for start in range(0, len(layers), size)
    ]
    return tuple(sorted(groups, key=lambda group: (group.window is not None, group.layers)))


def first_reachable(position: int, window: Window) -> int:
    """The first token that a query at `position`, or any later one, can see."""
    return 0 if window is None else max(0, position - window + 1)


def first_block(num_tokens: int, window: Window, *, block_tokens: int) -> int:
    """The first token block that is kept of a sequence with so many computed tokens. Counted from
    its last whole block: whoever shares the prefix up to there goes on from there."""
    whole = num_tokens - num_tokens % block_tokens
    return first_reachable(whole, window) // block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroups:
    """The groups of a model, and how many tokens a block has: what a block table needs of each."""

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

    def first_rows(self, num_tokens: int) -> list[int]:
        """Of each group, the first row kept of a sequence with so many computed tokens."""
        return [first_block(num_tokens, w, block_tokens=self.block_tokens) for w in self.windows]

    def mask_unseen(self, table: Sequence[int], first_rows: Sequence[int]) -> list[int]:
        """The table without the blocks before each group's first row."""
        groups = self.num_groups
        return [
            block if place // groups >= first_rows[place % groups] else NO_BLOCK
            for place, block in enumerate(table)
        ]

    def lacking(self, num_matched: int, *, num_tokens: int, named: bool) -> list[bool]:
        """Of the table's places after so many matched rows, those that need a block at admission.

        Without a window all do. With one those that a lease or a fetch must name do, which is
        what is seen after the last token; the others get theirs as they are computed.
        """
        num_rows = self.num_rows(num_tokens)
        first_rows = [
            first if window is None or named else num_rows
            for first, window in zip(self.first_rows(num_tokens), self.windows, strict=True)
        ]
        return [row >= first for row in range(num_matched, num_rows) for first in first_rows]

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
