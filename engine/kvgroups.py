"""Which layers share a block: KV groups, so that a window's layers can free what they left behind.

Called by `engine.config`; `engine.prefix` asks how far back a window reaches. A block holds the KV
of `block_tokens` tokens for the layers of one group; every group has the same number of layers, so
that all blocks of a pool have one size and any group can use any (the idea is that of vLLM's hybrid
KV cache manager). Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Window = int | None

NO_BLOCK = -1
"""In a block table, where a group has none: nobody can reach those tokens any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """Layers whose KV lies in the same blocks."""

    window: Window
    """Last tokens that a token sees, itself included; None: all."""
    layers: tuple[int, ...]


def group_layers(windows: Sequence[Window]) -> tuple[KvGroup, ...]:
    """Groups of layers with equal windows, as many layers in each as the rarest window has; the
    last group of a window may have fewer, and leaves room in its blocks. Full attention first.

    `windows` has one entry a layer.
    """
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
    """The first token block that is kept of a sequence with so many computed tokens.

    Counted from its last whole block: a sequence that shares the prefix up to there goes on from
    there, and this one sees no further back.
    """
    whole = num_tokens - num_tokens % block_tokens
    return first_reachable(whole, window) // block_tokens
