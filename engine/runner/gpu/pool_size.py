"""How large a device's KV pool may be: what is free, less what the largest step needs.

The largest step is run, over a pool of its own, because what libraries and allocators take for it
cannot be computed.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from engine.batch import Chunk, ReadRows, SequenceId, Words
from engine.kvcache.pool import KvPool, fewest_blocks
from engine.limits import EngineLimits
from engine.models.model import Model
from engine.ops.work import MOST_SLOTS, most_splits
from engine.runner.gpu.arrays import widest_table
from engine.runner.gpu.device import Device
from engine.runner.gpu.runner import DeviceRunner
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.penalties import ScorePenaliser, penalise
from engine.sampling.rows import TokenSampler
from protocol.errors import SettingsError
from protocol.layout import KvLayout
from protocol.messages import Sampling

log = logging.getLogger(__name__)

GRAPH_BYTES = 2 << 30
"""Kept for captured decode steps: their logits in float32 are 131 MB for 256 rows of 128,256."""
FULL = "out of memory"
"""What CUDA's own errors say."""


def pool_bytes(*, free_bytes: int, peak_bytes: int, graph_bytes: int, share: float) -> int:
    """Bytes for KV: `share` of what is free beside weights and the largest step, less the graphs'
    part, which shrinks to an eighth where little is free."""
    left = max(0, free_bytes - peak_bytes)
    return max(0, math.floor(left * share) - min(graph_bytes, left // 8))


def blocks_left(
    layout: KvLayout,
    *,
    device: Device,
    free_bytes: int,
    peak_bytes: int,
    share: float,
    graph_bytes: int = GRAPH_BYTES,
) -> int:
    """Blocks of the pool, beside a largest step of `peak_bytes`. Raises SettingsError where not
    even two of each KV group fit."""
    room_bytes = pool_bytes(
        free_bytes=free_bytes, peak_bytes=peak_bytes, graph_bytes=graph_bytes, share=share
    )
    num_blocks = room_bytes // layout.block_bytes
    log.info(
        "kv pool sized",
        extra={"free_bytes": free_bytes, "peak_bytes": peak_bytes, "blocks": num_blocks},
    )
    least = fewest_blocks(layout)
    if num_blocks < least:
        raise SettingsError(
            f"kv_memory_share: {share}: {room_bytes} bytes are left for KV on {device.name}, "
            f"{least} blocks need {least * layout.block_bytes}; lower token_budget or max_running"
        )
    return num_blocks


def largest_step(layout: KvLayout, limits: EngineLimits) -> list[Chunk]:
    """`token_budget` tokens of `max_running` sequences that all sample by all that may be asked
    for, and are all scored: the most logits too."""
    share, rest = divmod(limits.token_budget, limits.max_running)
    rule = Sampling(
        seed=1, max_tokens=1, temperature=1.0, top_p=0.9, num_logprobs=1, repetition_penalty=1.1,
        frequency_penalty=0.1, logit_bias=((0, 1.0),), min_tokens=1, stop_token_ids=(1,),
    )  # fmt: skip
    chunks, first_block = list[Chunk](), 0
    for number in range(limits.max_running):
        num_tokens = min(share + (rest if number == 0 else 0), limits.max_context_tokens)
        next_block = first_block + layout.num_blocks(num_tokens)
        table = range(first_block, next_block)
        chunks.append(_zeros(f"largest {number}", num_tokens, table, rule, _all_rows(num_tokens)))
        first_block = next_block
    return chunks


def wide_steps(layout: KvLayout, limits: EngineLimits) -> list[list[Chunk]]:
    """Ever more decodes, which a batch of cached prompts is too, and ever longer chunks of one
    sequence, all at the end of the longest context, but decodes only as far as they fill the
    scratch of attention. Every entry of the tables names block 0, which they overwrite."""
    longest = limits.max_context_tokens
    table = [0] * widest_table(longest, layout) * layout.num_groups
    filling = 1 + MOST_SLOTS // most_splits(longest)
    decodes = [
        [_wide(str(n), 1, table, start=longest - 1 if n < filling else 0) for n in range(count)]
        for count in _powers(limits.max_running)
    ]
    most = min(limits.token_budget, longest)
    chunks = [n for n in _powers(most) if n > 1]
    return [*decodes, *([_wide("chunk", n, table, start=longest - n)] for n in chunks)]


def _powers(most: int) -> list[int]:
    """1, 4, 16 ... and `most` itself."""
    powers, power = list[int](), 1
    while power < most:
        powers.append(power)
        power *= 4
    return [*powers, most]


def _wide(name: str, num_tokens: int, table: Sequence[int], *, start: int) -> Chunk:
    rule = Sampling(seed=1, max_tokens=1)
    return _zeros(f"wide {name}", num_tokens, table, rule, start=start)


class _FewTokens:
    """An `Allowed`: to the first 32."""

    def words(self) -> Words:
        return np.full(1, -1, np.int32)


def _all_rows(num_tokens: int) -> ReadRows | None:
    rows = range(num_tokens - 1)
    return ReadRows(rows=rows, targets=[0] * len(rows), num_top=1) if rows else None


def _zeros(
    name: str,
    num_tokens: int,
    table: Sequence[int],
    rule: Sampling,
    read: ReadRows | None = None,
    *,
    start: int = 0,
) -> Chunk:
    return Chunk(
        sequence=SequenceId(name), token_ids=[0] * num_tokens, start=start, block_table=table,
        sampling=rule, prompt_ids=(0,), outputs=(0,), read=read, allowed=_FewTokens(),
    )  # fmt: skip


def largest_step_bytes(
    model: Model,
    layout: KvLayout,
    *,
    device: Device,
    sampler: TokenSampler,
    masker: TokenMasker = mask_tokens,
    penaliser: ScorePenaliser = penalise,
    limits: EngineLimits,
) -> int:
    """Runs the largest step, and the wide ones: the most that one takes of the device, what its
    runner keeps there included (the counts of tokens among it), its pool not. It also compiles the
    kernels that the first request would wait for."""
    chunks = largest_step(layout, limits)
    num_blocks = sum(len(chunk.block_table) for chunk in chunks)
    pool = KvPool(layout, num_blocks, device=device.where)
    steps = [chunks, *wide_steps(layout, limits)]

    def run() -> None:
        runner = DeviceRunner(
            model, pool, device=device, sampler=sampler, masker=masker, penaliser=penaliser,
            limits=limits,
        )  # fmt: skip
        for step in steps:
            runner.launch(step).tokens()

    return device.peak_bytes(run)


@contextmanager
def refused_when_full(device: Device, *, setting: str, doing: str, advice: str) -> Iterator[None]:
    """Raises SettingsError, which names the setting with its value and what to do, where the
    device has no memory left for what is done."""
    try:
        yield
    except RuntimeError as error:  # capturing knows no error of its own for it
        if not isinstance(error, torch.OutOfMemoryError) and FULL not in str(error):
            raise
        why = str(error).partition("\n")[0]
        raise SettingsError(
            f"{setting}: {device.name} has no memory left for {doing}; {advice} ({why})"
        ) from error
