"""Lays a request's KV out in pools the slow way, element by element, and copies by ranges.

The oracle of `kvtransfer.plan`. Elements are all different, so one in a wrong place shows.
"""

# Shapes: L planes (K and V of each layer), H heads of the model, N tokens, D elements of a row.

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtransfer.plan import Ranges
from protocol.layout import DTYPE_BYTES, KvLayout, LatentLayout

Array = NDArray[Any]
ELEMENTS: dict[int, type[np.unsignedinteger[Any]]] = {2: np.uint16, 4: np.uint32}
Cuttable = KvLayout | LatentLayout


def planes(layout: Cuttable) -> tuple[int, int, int]:
    """(planes, heads of the model, elements of a row)."""
    match layout:
        case KvLayout():
            return 2 * layout.num_layers, layout.model_kv_heads, layout.head_dim
        case LatentLayout():
            return layout.num_layers, 1, layout.latent_dim


def request_kv(layout: Cuttable, num_tokens: int) -> Array:
    """[L, H, N, D], no two elements alike (as far as their type goes) and none zero."""
    num_planes, heads, dim = planes(layout)
    count = num_planes * heads * num_tokens * dim
    element = ELEMENTS[DTYPE_BYTES[layout.dtype]]
    values = (np.arange(count, dtype=np.uint64) % (np.iinfo(element).max)) + 1
    return values.astype(element).reshape(num_planes, heads, num_tokens, dim)


@dataclass
class Pool:
    """One rank's pool, and how often each byte was written by `take`."""

    layout: Cuttable
    num_blocks: int
    data: Array = field(init=False)
    num_writes: Array = field(init=False)

    def __post_init__(self) -> None:
        self.data = np.zeros(self.num_blocks * self.layout.block_bytes, np.uint8)
        self.num_writes = np.zeros(len(self.data), np.uint8)

    def lay(self, kv_LHND: Array, block_ids: Sequence[int]) -> None:
        """Write a request's tokens into the blocks, one row after another."""
        num_planes, _, dim = planes(self.layout)
        rows = self.data.view(kv_LHND.dtype).reshape(
            self.num_blocks, num_planes, len(self.layout.heads), self.layout.block_tokens, dim
        )
        for token in range(min(kv_LHND.shape[2], len(block_ids) * self.layout.block_tokens)):
            block, place = divmod(token, self.layout.block_tokens)
            for local, head in enumerate(self.layout.heads):
                for plane in range(num_planes):
                    rows[block_ids[block], plane, local, place] = kv_LHND[plane, head, token]

    def take(self, ranges: Ranges, other: "Pool", theirs: Ranges) -> None:
        """Copy range by range, piece by piece."""
        assert ranges.sizes_R.tolist() == theirs.sizes_R.tolist()
        assert ranges.starts_P.tolist() == theirs.starts_P.tolist()
        for to, at, size in zip(ranges.offsets_R, theirs.offsets_R, ranges.sizes_R, strict=True):
            assert 0 <= at <= at + size <= len(other.data)
            assert 0 <= to <= to + size <= len(self.data)
            self.data[to : to + size] = other.data[at : at + size]
            self.num_writes[to : to + size] += 1
