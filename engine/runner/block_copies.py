"""Blocks copied before a step computes: who goes on from another's prompt has its last block, which
others write into as well, as its own."""

from collections.abc import Iterable

from engine.batch import Chunk
from engine.kvcache.pool import KvPool


def copy_blocks(chunks: Iterable[Chunk], pool: KvPool) -> None:
    """Of these chunks, in the pool, in the order of the device's stream: after what was launched
    before and before what is launched next. Waits for nothing."""
    for chunk in chunks:
        for source, target in chunk.copies:
            pool.tensor[target].copy_(pool.tensor[source], non_blocking=True)
