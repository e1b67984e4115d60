"""Turns the chunks of a step into the few index tensors a forward needs."""

# Shapes: T tokens, S sequences (one chunk each), G KV groups, B blocks of the longest table of one
# group, R rows whose logits are asked for.

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk
from engine.kvcache.windows import Window
from engine.ops.work import AttentionWork, slots, work


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
    reaches_T: Tensor | None = None
    """int64: tokens of the sequence that a token is turned for, those of the whole prompt or those
    up to itself; None unless asked for."""
    slots_GS1: Tensor | None = None
    """int32: places of attention's partial results, `engine.ops.work.slots`; None where nothing is
    split."""
    work: AttentionWork | None = None
    """What the host knows of them."""

    @property
    def num_sequences(self) -> int:
        return self.ends_S.shape[0]


def forward_inputs(
    chunks: Sequence[Chunk], *, block_tokens: int, num_groups: int = 1, reaches: bool = False
) -> ForwardInputs:
    """With `reaches_T` if asked for. Raises ValueError for a chunk without tokens, or with a block
    table that is too short or has no block where it computes."""
    num_chunks = len(chunks)
    lengths = np.fromiter([len(chunk.token_ids) for chunk in chunks], np.int64, num_chunks)
    firsts = np.fromiter([chunk.start for chunk in chunks], np.int64, num_chunks)
    ends = firsts + lengths
    tables_SBG = _tables(chunks, ends, block_tokens=block_tokens, num_groups=num_groups)
    starts = np.zeros(num_chunks + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    num_tokens = int(starts[-1])
    token_ids = np.fromiter(
        chain.from_iterable([chunk.token_ids for chunk in chunks]), np.int64, num_tokens
    )
    sequences, positions = np.arange(num_chunks), firsts
    if num_tokens > num_chunks:  # not a step of decodes alone
        sequences = np.repeat(sequences, lengths)
        positions = np.arange(num_tokens) + np.repeat(firsts - starts[:-1], lengths)
    blocks, places = np.divmod(positions, block_tokens)
    blocks_TG = tables_SBG[sequences, blocks].astype(np.int64)
    if blocks_TG.min() < 0:
        raise ValueError("a token has no block to write its KV to in one of its groups")
    slots_TG = blocks_TG * block_tokens + places[:, None]
    reachable_GSB = np.maximum(tables_SBG.transpose(2, 0, 1), 0, order="C")
    asking = [s for s, chunk in enumerate(chunks) if chunk.sampling is not None]
    reaches_T: Tensor | None = None
    if reaches:
        prompts = np.array([chunk.num_prompt for chunk in chunks], np.int64)
        reaches_T = torch.from_numpy(np.maximum(prompts[sequences], positions + 1))
    return ForwardInputs(
        token_ids_T=torch.from_numpy(token_ids),
        positions_T=torch.from_numpy(positions),
        slots_GT=torch.from_numpy(np.ascontiguousarray(slots_TG.T)),
        starts_S1=torch.from_numpy(starts),
        ends_S=torch.from_numpy(ends.astype(np.int32)),
        tables_GSB=torch.from_numpy(reachable_GSB),
        rows_R=torch.from_numpy(starts[1:][asking].astype(np.int64) - 1),
        reaches_T=reaches_T,
    )


def with_work(inputs: ForwardInputs, windows: Sequence[Window]) -> ForwardInputs:
    """With what the Triton kernels split attention by; `windows` of each KV group. The inputs still
    lie on the host."""
    starts_S1, ends_S = inputs.starts_S1.numpy(), inputs.ends_S.numpy().astype(np.int64)
    lengths_S = np.diff(starts_S1).astype(np.int64)
    slots_GS1 = slots(lengths_S, ends_S, windows)
    return replace(inputs, slots_GS1=torch.from_numpy(slots_GS1), work=work(lengths_S, slots_GS1))


def _tables(
    chunks: Sequence[Chunk], ends: NDArray[np.int64], *, block_tokens: int, num_groups: int
) -> NDArray[np.int32]:
    """[S, B, G], padded with 0; -1 where there is no block."""
    sizes = [len(chunk.block_table) for chunk in chunks]
    longest = max(sizes)
    for s, chunk in enumerate(chunks):
        if not chunk.token_ids or ends[s] > sizes[s] // num_groups * block_tokens:
            raise ValueError(
                f"chunk {chunk.sequence}: {len(chunk.token_ids)} tokens from {chunk.start} on do "
                f"not fit {sizes[s] // num_groups} blocks of {block_tokens}"
            )
    rows = [array("i", chunk.block_table).tobytes().ljust(4 * longest, b"\0") for chunk in chunks]
    flat = np.frombuffer(b"".join(rows), dtype=np.int32)
    return flat.reshape(len(chunks), longest // num_groups, num_groups)
