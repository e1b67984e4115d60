"""A block allocator and a prefix cache of a few blocks, and sequences on them."""

from collections.abc import Sequence as Seq

from engine.batch import SequenceId
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import Window
from engine.sequence import Mode, Sequence
from protocol.messages import Sampling

BLOCK_TOKENS = 4


def cache_of(num_blocks: int, *, windows: Seq[Window] = (None,)) -> PrefixCache:
    blocks = BlockAllocator(num_blocks, generations=[0] * num_blocks)
    return PrefixCache(blocks, block_tokens=BLOCK_TOKENS, compat="test", windows=windows)


def sequence_of(
    cache: PrefixCache, name: str, prompt: Seq[int], *, mode: Mode = Mode.LOCAL
) -> Sequence:
    return Sequence(
        id=SequenceId(name),
        prompt=prompt,
        outputs=[],
        sampling=Sampling(seed=1, max_tokens=4),
        mode=mode,
        block_table=BlockTable(cache, salt="", lent=mode is Mode.HANDOVER),
    )
