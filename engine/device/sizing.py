"""How large a device's KV pool may be: what is free, less what the largest step needs.

Called by `engine.assembly` once the weights are there. The largest step is run, over a pool of its
own, because what libraries and allocators take for it cannot be computed.
"""

import logging
import math

from engine.batch import Chunk, SequenceId
from engine.device.base import Device
from engine.device.choosing import Chooser
from engine.device.runner import DeviceRunner
from engine.kvpool import KvPool
from engine.limits import EngineLimits
from engine.model import Model
from protocol.errors import SettingsError
from protocol.layout import KvLayout
from protocol.messages import Sampling

log = logging.getLogger(__name__)

GRAPH_BYTES = 2 << 30
"""Kept for captured decode steps: their logits in float32 are 131 MB for 256 rows of 128,256."""


def pool_bytes(*, free_bytes: int, peak_bytes: int, graph_bytes: int, share: float) -> int:
    """Bytes for KV: `share` of what is free beside weights and the largest step, less the graphs'
    part, which shrinks to an eighth where little is free."""
    left = max(0, free_bytes - peak_bytes)
    return max(0, math.floor(left * share) - min(graph_bytes, left // 8))


def blocks_left(
    layout: KvLayout, *, device: Device, free_bytes: int, peak_bytes: int, share: float
) -> int:
    """Blocks of the pool, beside a largest step of `peak_bytes`. Raises SettingsError where not
    even two fit."""
    room_bytes = pool_bytes(
        free_bytes=free_bytes, peak_bytes=peak_bytes, graph_bytes=GRAPH_BYTES, share=share
    )
    num_blocks = room_bytes // layout.block_bytes
    log.info(
        "kv pool sized",
        extra={"free_bytes": free_bytes, "peak_bytes": peak_bytes, "blocks": num_blocks},
    )
    if num_blocks < 2:
        raise SettingsError(
            f"kv_memory_share: {share}: {room_bytes} bytes are left for KV on {device.name}, "
            f"two blocks need {2 * layout.block_bytes}; lower token_budget or max_running"
        )
    return num_blocks


def largest_step(layout: KvLayout, limits: EngineLimits) -> list[Chunk]:
    """`token_budget` tokens of `max_running` sequences that all sample: the most logits too."""
    share, rest = divmod(limits.token_budget, limits.max_running)
    rule = Sampling(seed=1, max_tokens=1, temperature=1.0, top_p=0.9, num_logprobs=1)
    chunks, first_block = [], 0
    for number in range(limits.max_running):
        num_tokens = min(share + (rest if number == 0 else 0), limits.max_context_tokens)
        num_blocks = layout.num_blocks(num_tokens)
        chunks.append(
            Chunk(
                sequence=SequenceId(f"largest {number}"),
                token_ids=[0] * num_tokens,
                start=0,
                block_table=range(first_block, first_block + num_blocks),
                sampling=rule,
                prompt_ids=(),
                outputs=(),
            )
        )
        first_block += num_blocks
    return chunks


def largest_step_bytes(
    model: Model, layout: KvLayout, *, device: Device, choose: Chooser, limits: EngineLimits
) -> int:
    """Runs the largest step: what it takes of the device, its pool not counted. It also compiles
    the kernels that the first request would wait for."""
    chunks = largest_step(layout, limits)
    num_blocks = sum(len(chunk.block_table) for chunk in chunks)
    pool = KvPool(layout, num_blocks, device=device.where)
    runner = DeviceRunner(model, pool, device=device, choose=choose, limits=limits)
    return device.peak_bytes(lambda: _run(runner, chunks))


def _run(runner: DeviceRunner, chunks: list[Chunk]) -> None:
    runner.launch(chunks).tokens()
