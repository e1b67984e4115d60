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

HASH_BYTES = 16


def chain_seed(*, compat: str, adapter: str = "", salt: str = "", reach: int = 0) -> BlockHash:
    """The hash "before" the first block, `reach` as of `prompt_reach`. Lengths keep ("a", "bc")
    apart from ("ab", "c")."""
    named = (compat, adapter, salt, str(reach)) if reach else (compat, adapter, salt)
    parts = [part.encode() for part in named]
    packed = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return BlockHash(xxhash.xxh3_128_digest(packed))


def prompt_reach(num_prompt: int, *, dynamic_after: int | None) -> int:
    """What the KV of a prompt and of all that follows depends on beside the tokens: the prompt's
    length where a dynamic rope turns its keys by it, beyond `dynamic_after` tokens; else 0. Other
    keys are turned by their place alone."""
    return num_prompt if dynamic_after is not None and num_prompt > dynamic_after else 0


def next_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of one sealed block holding `token_ids`, after the chain ending in `parent`."""
    return BlockHash(xxhash.xxh3_128_digest(parent + array("I", token_ids).tobytes()))


def packed_hashes(token_ids: Sequence[int], *, block_tokens: int, seed: BlockHash) -> bytes:
    """Hashes of the sealed blocks of `token_ids`, HASH_BYTES each; a partly filled last block has
    none."""
    tokens, step = array("I", token_ids).tobytes(), array("I").itemsize * block_tokens
    hashes, parent = [], bytes(seed)
    for start in range(0, len(tokens) - step + 1, step):
        parent = xxhash.xxh3_128_digest(parent + tokens[start : start + step])
        hashes.append(parent)
    return b"".join(hashes)


def block_hashes(
    token_ids: Sequence[int], *, block_tokens: int, seed: BlockHash
) -> list[BlockHash]:
    """As `packed_hashes`, one by one."""
    return unpack_hashes(packed_hashes(token_ids, block_tokens=block_tokens, seed=seed))


def unpack_hashes(packed: bytes) -> list[BlockHash]:
    """The whole hashes in it."""
    stop = len(packed) - HASH_BYTES + 1
    return [BlockHash(packed[start : start + HASH_BYTES]) for start in range(0, stop, HASH_BYTES)]


ChangeKind = Literal["stored", "evicted", "cleared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChange:
    """What a prefix cache gained or lost, in the order it happened."""

    kind: ChangeKind
    hashes: Sequence[BlockHash] = ()
