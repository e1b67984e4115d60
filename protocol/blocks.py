"""Chained block hashes: `hash_i = H(hash_{i-1}, tokens_i)`.

The seed holds the compat hash, the adapter and the tenant salt, so blocks of different models or
tenants never meet. xxh3-128 is not a cryptographic hash: whoever owns the tokens compares them as
well.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash

from protocol.ids import BlockHash


def chain_seed(*, compat: str, adapter: str = "", salt: str = "") -> BlockHash:
    """The hash "before" the first block. Lengths keep ("a", "bc") apart from ("ab", "c")."""
    parts = [part.encode() for part in (compat, adapter, salt)]
    packed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return BlockHash(xxhash.xxh3_128_digest(packed))


def next_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one sealed block holding `token_ids`, after the chain ending in `parent`."""
    return BlockHash(xxhash.xxh3_128_digest(parent + array("I", token_ids).tobytes()))


def block_hashes(
    token_ids: Sequence[int], *, block_tokens: int, seed: BlockHash
) -> list[BlockHash]:
    """Hashes of the sealed blocks of `token_ids`; a partly filled last block has none."""
    hashes: list[BlockHash] = []
    parent = seed
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        parent = next_hash(parent, token_ids[start : start + block_tokens])
        hashes.append(parent)
    return hashes


ChangeKind = Literal["stored", "evicted", "cleared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChange:
    """What a prefix cache gained or lost, in the order it happened."""

    kind: ChangeKind
    hashes: Sequence[BlockHash] = ()
