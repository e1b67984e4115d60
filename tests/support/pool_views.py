"""A pool as another process of its host would map it."""

from kvtransfer.memory.host_pool import BlockMemory


def view_of(pool: BlockMemory) -> BlockMemory:
    """The same pool, mapped once more for reading."""
    return BlockMemory.open(
        pool.reader_fd(), num_blocks=pool.num_blocks, block_bytes=pool.block_bytes
    )
