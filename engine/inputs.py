"""Turns the chunks of a step into the few index tensors a forward needs.

Called by `engine.torch_runner` once per step; the only per-token Python work of a step.
"""

# Shapes: T tokens, S sequences, G KV groups, B blocks of the longest table of one group, R rows
# whose logits are asked for.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardInputs:
    """A ragged batch: chunk s owns tokens starts[s] .. starts[s + 1]."""

    token_ids_T: Tensor  # int64
    positions_T: Tensor  # int64
    slots_GT: Tensor  # int64: block id * block_tokens + place in the block
    starts_S1: Tensor  # int32, one more than sequences
    ends_S: Tensor  # int32: context length after this step
    tables_GSB: Tensor  # int32, padded with 0; so are blocks that nobody can reach any more
    rows_R: Tensor  # int64, indices into T, ascending

    @property
    def num_tokens(self) -> int:
        return self.token_ids_T.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.ends_S.shape[0]


def forward_inputs(
    chunks: Sequence[Chunk], *, block_tokens: int, num_groups: int = 1
) -> ForwardInputs:
    """Raises ValueError for a chunk without tokens, or with a block table that is too short or has
    no block where it computes."""
    lengths = [len(chunk.token_ids) for chunk in chunks]
    starts = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    num_blocks = max(len(chunk.block_table) // num_groups for chunk in chunks)
    tables = np.zeros((len(chunks), num_blocks, num_groups), dtype=np.int32)
    token_ids = np.empty(starts[-1], dtype=np.int64)
    positions = np.empty(starts[-1], dtype=np.int64)
    for s, chunk in enumerate(chunks):
        own_blocks = len(chunk.block_table) // num_groups
        if not lengths[s] or chunk.position > own_blocks * block_tokens:
            raise ValueError(
                f"chunk {chunk.sequence}: {lengths[s]} tokens from {chunk.start} on do not fit "
                f"{own_blocks} blocks of {block_tokens}"
            )
        tables[s, :own_blocks] = np.reshape(chunk.block_table, (own_blocks, num_groups))
        token_ids[starts[s] : starts[s + 1]] = chunk.token_ids
        positions[starts[s] : starts[s + 1]] = range(chunk.start, chunk.position)
    sequences = np.repeat(np.arange(len(chunks)), lengths)
    blocks_TG = tables[sequences, positions // block_tokens].astype(np.int64)
    if blocks_TG.min() < 0:
        raise ValueError("a token has no block to write its KV to in one of its groups")
    np.maximum(tables, 0, out=tables)
    slots_TG = blocks_TG * block_tokens + (positions % block_tokens)[:, None]
    rows = [int(starts[s + 1]) - 1 for s, chunk in enumerate(chunks) if chunk.sampling is not None]
    return ForwardInputs(
        token_ids_T=torch.from_numpy(token_ids),
        positions_T=torch.from_numpy(positions),
        slots_GT=torch.from_numpy(np.ascontiguousarray(slots_TG.T)),
        starts_S1=torch.from_numpy(starts),
        ends_S=torch.tensor([chunk.position for chunk in chunks], dtype=torch.int32),
        tables_GSB=torch.from_numpy(np.ascontiguousarray(tables.transpose(2, 0, 1))),
        rows_R=torch.tensor(rows, dtype=torch.int64),
    )
