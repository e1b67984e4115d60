"""Prompts just sent to workers, whose blocks their events do not tell of yet.

A tree of the chains: a node is a run of blocks that the same prompts begin with, so that to find
what one more prompt shares with thousands of others takes a step for each place where they part,
not for each block. Pure. Bounded in blocks; beyond it the oldest are forgotten early.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from protocol.blocks import HASH_BYTES
from router.prefix.table import num_hashes

MAX_BLOCKS = 1 << 20
"""Of all prompts expected at once: 16 MB of hashes."""


@dataclass(slots=True, eq=False)
class _Node:
    """Blocks [start, stop) of `packed`, and until when each holder is expected to have them."""

    packed: bytes
    start: int
    stop: int
    expires: dict[int, float] = field(default_factory=dict)
    nodes: dict[bytes, "_Node"] = field(default_factory=dict)
    """What comes next, by the first block of it."""


class ExpectedBlocks:
    """A holder is any number that is never used again for another."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self._root = _Node(b"", 0, 0)
        self._sent: deque[tuple[float, int, bytes]] = deque()
        self._num_blocks = 0
        self._max_blocks = max_blocks

    def __len__(self) -> int:
        """Prompts that are expected."""
        return len(self._sent)

    def expect_prompt(self, holder: int, packed: bytes, *, expires: float) -> None:
        """`expires` never decreases from call to call."""
        num = num_hashes(packed)
        if not num:
            return
        node, depth = self._root, 0
        while depth < num:
            node = self._next_node(node, packed, depth, num)
            node.expires[holder] = expires
            depth = node.stop
        self._sent.append((expires, holder, packed))
        self._num_blocks += num
        while self._num_blocks > self._max_blocks:
            self._forget_oldest()

    def drop_expired(self, now: float) -> None:
        while self._sent and self._sent[0][0] <= now:
            self._forget_oldest()

    def hoped_depths(self, packed: bytes) -> dict[int, int]:
        """How many leading blocks each holder is expected to have; without those of none."""
        depths: dict[int, int] = {}
        num, node = num_hashes(packed), self._root
        while (found := node.nodes.get(_block(packed, node.stop))) is not None:
            stop = _shared(found.packed, packed, found.start, min(found.stop, num))
            depths.update(dict.fromkeys(found.expires, stop))
            if stop < found.stop:
                break
            node = found
        return depths

    def num_runs(self, packed: bytes) -> int:
        """Into which the tree cuts a prompt that is expected: steps that a look-up takes."""
        return sum(1 for _ in self._path(packed))

    def _next_node(self, node: _Node, packed: bytes, depth: int, num: int) -> _Node:
        """The node that begins at `depth`, and ends where this prompt and the others part."""
        first = _block(packed, depth)
        found = node.nodes.get(first)
        if found is None:
            node.nodes[first] = leaf = _Node(packed, depth, num)
            return leaf
        stop = _shared(found.packed, packed, depth, min(found.stop, num))
        if stop == found.stop:
            return found
        upper = _Node(found.packed, depth, stop, dict(found.expires))
        upper.nodes[_block(found.packed, stop)] = found
        found.start = stop
        node.nodes[first] = upper
        return upper

    def _forget_oldest(self) -> None:
        expires, holder, packed = self._sent.popleft()
        self._num_blocks -= num_hashes(packed)
        for node, below in list(self._path(packed)):
            if below.expires.get(holder, expires + 1.0) <= expires:
                del below.expires[holder]
            if not below.expires:  # nor has anybody what comes after
                del node.nodes[_block(below.packed, below.start)]
                return
        for _, below in list(self._path(packed)):
            _join(below)

    def _path(self, packed: bytes) -> Iterator[tuple[_Node, _Node]]:
        """Each node that a prompt goes through, with the one above it."""
        node = self._root
        while (below := node.nodes.get(_block(packed, node.stop))) is not None:
            yield node, below
            node = below


def _join(node: _Node) -> None:
    """Where prompts parted once and no longer do, there is one run again."""
    if len(node.nodes) != 1:
        return
    (below,) = node.nodes.values()
    if below.expires == node.expires:
        node.packed, node.stop, node.nodes = below.packed, below.stop, below.nodes


def _block(packed: bytes, depth: int) -> bytes:
    """b"" beyond the last."""
    return packed[depth * HASH_BYTES : (depth + 1) * HASH_BYTES]


def _shared(one: bytes, other: bytes, start: int, stop: int) -> int:
    """Up to where both are the same, of blocks [start, stop)."""
    while start < stop:
        middle = (start + stop + 1) // 2
        part = slice(start * HASH_BYTES, middle * HASH_BYTES)
        if one[part] == other[part]:
            start = middle
        else:
            stop = middle - 1
    return start
