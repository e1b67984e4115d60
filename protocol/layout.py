"""How one KV block lies in memory, and the arithmetic on its bytes.

A block is `block_tokens` consecutive tokens of all layers, laid out as
`[layer, K/V, head, token, dim]`, so one block is one byte range and a slice of heads is a set
of sub-ranges. Called by the engine (allocates pools), kvtransfer (moves bytes) and the router
(counts blocks). Does not know tensors.
"""

import hashlib
from typing import Literal

import msgspec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KvDtype = Literal["float32", "bfloat16", "float16"]
LAYOUT_VERSION = 1


class KvLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of one block. Two workers exchange blocks only when theirs are equal."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: KvDtype
    version: int = LAYOUT_VERSION

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of one token, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_tokens

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """`[layer, K/V, head, token, dim]` of one block."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_tokens, self.head_dim)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens, the last perhaps partly filled."""
        return -(-num_tokens // self.block_tokens)


def compat_hash(layout: KvLayout, *, model_revision: str) -> str:
    """Digest of all that two workers must share before one may read the other's blocks."""
    text = f"{msgspec.json.encode(layout).decode()}|{model_revision}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
