"""Drives a model or a runner directly, without an engine: chunks in, logits or tokens out."""

# Shapes: T tokens, V vocabulary.

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from engine.batch import Chunk, ReadRows, SampledToken, SequenceId
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.inputs import forward_inputs, with_work
from engine.runner.contract import Runner
from protocol.layout import KvDtype
from protocol.messages import Sampling

GREEDY = Sampling(seed=0, max_tokens=1, temperature=0.0)


def chunk(
    token_ids: Sequence[int],
    *,
    table: Sequence[int],
    start: int = 0,
    sequence: str = "a",
    sampling: Sampling | None = GREEDY,
    prompt_ids: Sequence[int] = (),
    outputs: Sequence[int] = (),
    num_prompt: int = 0,
    read: ReadRows | None = None,
) -> Chunk:
    return Chunk(
        sequence=SequenceId(sequence),
        token_ids=token_ids,
        start=start,
        block_table=table,
        sampling=sampling,
        prompt_ids=prompt_ids,
        outputs=outputs,
        num_prompt=num_prompt,
        read=read,
    )


def step(runner: Runner, chunks: Sequence[Chunk]) -> Mapping[SequenceId, SampledToken]:
    """What the chunks sample, one token each, awaited."""
    sampled = runner.launch(chunks).tokens()
    return {sequence: token for sequence, (token,) in sampled.items()}


def pool_for(
    model: Model, *, block_tokens: int = 8, num_blocks: int = 64, fill: float = float("nan")
) -> KvPool:
    """Unwritten slots hold NaN: reading one shows."""
    dtype = cast(KvDtype, str(model.kv_dtype).removeprefix("torch."))
    (layout,) = model.config.kv_layouts(block_tokens=block_tokens, dtype=dtype)
    pool = KvPool(layout, num_blocks)
    pool.tensor.fill_(fill)
    return pool


def logits(model: Model, pool: KvPool, chunks: Sequence[Chunk]) -> Tensor:
    """[T, V] of every token of the chunks, whether or not they ask for one."""
    inputs = forward_inputs(
        chunks, block_tokens=pool.layout.block_tokens, num_groups=pool.layout.num_groups,
        reaches=model.takes_reaches,
    )  # fmt: skip
    inputs = with_work(inputs, [group.window for group in model.config.kv_groups])
    return model.forward(replace(inputs, rows_R=torch.arange(len(inputs.token_ids_T))), pool)


def split_logits(
    model: Model, pool: KvPool, token_ids: Sequence[int], *, sizes: Sequence[int],
    first_block: int, num_prompt: int | None = None,
) -> Tensor:  # fmt: skip
    """[T, V] of one sequence computed in chunks of the given sizes, in blocks counted down; all of
    it its prompt, or the first `num_prompt` tokens."""
    num_prompt = len(token_ids) if num_prompt is None else num_prompt
    assert sum(sizes) == len(token_ids)
    table = range(first_block, first_block - pool.layout.num_blocks(len(token_ids)), -1)
    parts, start = [], 0
    for size in sizes:
        part = chunk(
            token_ids[start : start + size], start=start, table=list(table), num_prompt=num_prompt
        )
        parts.append(logits(model, pool, [part]))
        start += size
    return torch.cat(parts)
