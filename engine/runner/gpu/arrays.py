"""A step's numbers as arrays on the host, before one upload takes them all to the device.

Made by `engine.runner.gpu.runner`, packed by `engine.runner.gpu.upload`. Pure.
"""

# Shapes: T tokens, S sequences, G KV groups, B blocks of the longest table, R rows sampled.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.batch import Chunk
from engine.ops.inputs import forward_inputs
from protocol.layout import KvLayout
from protocol.messages import Sampling

Array = NDArray[Any]
NO_FEED = -1
"""The token is the uploaded one."""
WIDTH_GRAIN = 16
"""Tables are a multiple of it wide: kernels are compiled anew for strides that are none."""
NO_SLOT = -1
"""Nothing is written for this token: it fills a batch up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArrays:
    """Packed in this order; the tables last, because they alone differ in size between two decode
    steps of one batch size."""

    token_ids_T: Array  # int64
    feed_T: Array  # int64: place among the last tokens to take the id from, or NO_FEED
    positions_T: Array  # int64
    slots_GT: Array  # int64
    starts_S1: Array  # int32
    ends_S: Array  # int32
    rows_R: Array  # int64
    keep_R: Array  # int64: place among the last tokens for the token sampled
    temperature_R: Array  # float32
    top_p_R: Array  # float32
    min_p_R: Array  # float32
    top_k_R: Array  # int32; 0: all
    seed_R: Array  # int64: the same 64 bits
    position_R: Array  # int64
    tables_GSB: Array  # int32


def step_arrays(
    chunks: Sequence[Chunk], layout: KvLayout, *, feeds: Sequence[int], keeps: Sequence[int]
) -> StepArrays:
    """`feeds` has one place for each chunk, NO_FEED without a pending token; `keeps` one for each
    that samples. Raises ValueError as `engine.ops.inputs.forward_inputs`."""
    inputs = forward_inputs(chunks, block_tokens=layout.block_tokens, num_groups=layout.num_groups)
    asking = [chunk for chunk in chunks if chunk.sampling is not None]
    rules = [_rule(chunk) for chunk in asking]
    more = -inputs.tables_GSB.shape[2] % WIDTH_GRAIN
    return StepArrays(
        token_ids_T=inputs.token_ids_T.numpy(),
        feed_T=np.repeat(np.array(feeds, np.int64), [len(chunk.token_ids) for chunk in chunks]),
        positions_T=inputs.positions_T.numpy(),
        slots_GT=inputs.slots_GT.numpy(),
        starts_S1=inputs.starts_S1.numpy(),
        ends_S=inputs.ends_S.numpy(),
        rows_R=inputs.rows_R.numpy(),
        keep_R=np.array(keeps, np.int64),
        temperature_R=np.array([rule.temperature for rule in rules], np.float32),
        top_p_R=np.array([rule.top_p for rule in rules], np.float32),
        min_p_R=np.array([rule.min_p for rule in rules], np.float32),
        top_k_R=np.array([rule.top_k for rule in rules], np.int32),
        seed_R=np.array([_signed(rule.seed) for rule in rules], np.int64),
        position_R=np.array([chunk.position for chunk in asking], np.int64),
        tables_GSB=np.pad(inputs.tables_GSB.numpy(), ((0, 0), (0, 0), (0, more))),
    )


def padded(step: StepArrays, size: int, *, nowhere: int) -> StepArrays:
    """A decode step filled up to `size` rows that read no KV, write none, and whose tokens are
    kept at the place `nowhere`."""
    more = size - len(step.ends_S)

    def fill(array: Array, value: float) -> Array:
        return np.concatenate((array, np.full(more, value, array.dtype)))

    return StepArrays(
        token_ids_T=fill(step.token_ids_T, 0),
        feed_T=fill(step.feed_T, NO_FEED),
        positions_T=fill(step.positions_T, 0),
        slots_GT=np.pad(step.slots_GT, ((0, 0), (0, more)), constant_values=NO_SLOT),
        starts_S1=np.arange(size + 1, dtype=np.int32),
        ends_S=fill(step.ends_S, 0),
        rows_R=np.arange(size),
        keep_R=fill(step.keep_R, nowhere),
        temperature_R=fill(step.temperature_R, 0),
        top_p_R=fill(step.top_p_R, 1),
        min_p_R=fill(step.min_p_R, 0),
        top_k_R=fill(step.top_k_R, 0),
        seed_R=fill(step.seed_R, 0),
        position_R=fill(step.position_R, 0),
        tables_GSB=np.pad(step.tables_GSB, ((0, 0), (0, more), (0, 0))),
    )


def empty_decode(size: int, *, num_groups: int, num_blocks: int, nowhere: int) -> StepArrays:
    """A decode step of nothing but rows that fill up, its tables `num_blocks` wide."""
    ids, counts = np.empty(0, np.int64), np.empty(0, np.int32)
    shares = np.empty(0, np.float32)
    nothing = StepArrays(
        token_ids_T=ids, feed_T=ids, positions_T=ids, slots_GT=np.empty((num_groups, 0), np.int64),
        starts_S1=counts, ends_S=counts, rows_R=ids, keep_R=ids, temperature_R=shares,
        top_p_R=shares, min_p_R=shares, top_k_R=counts, seed_R=ids, position_R=ids,
        tables_GSB=np.empty((num_groups, 0, num_blocks), np.int32),
    )  # fmt: skip
    return padded(nothing, size, nowhere=nowhere)


def widest_table(max_context_tokens: int, layout: KvLayout) -> int:
    """Blocks of one group that a sequence may have, and the one it grows into."""
    num_blocks = 1 + -(-max_context_tokens // layout.block_tokens)
    return -(-num_blocks // WIDTH_GRAIN) * WIDTH_GRAIN


def is_decode(chunks: Sequence[Chunk]) -> bool:
    """Whether every chunk is one token that samples the next."""
    return all(len(chunk.token_ids) == 1 and chunk.sampling is not None for chunk in chunks)


def _rule(chunk: Chunk) -> Sampling:
    assert chunk.sampling is not None
    return chunk.sampling


def _signed(seed: int) -> int:
    """The 64 bits that key the generator, as an int64 holds them."""
    bits = seed & (1 << 64) - 1
    return bits - (1 << 64) if bits >> 63 else bits
