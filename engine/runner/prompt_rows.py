"""Rows of prompts that a step reads besides those it samples by: which, and what is made of them.

The head is applied to a slab of rows at a time, so that never all rows lie side by side over the
whole vocabulary. Works on any device, and does not wait for it.
"""

# Shapes: R rows of a step, S of them scored together, K hidden size, V vocabulary, N most likely.

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk, RowsRead, ScoredRows, StepReadings, SummedRows
from engine.models.model import Model
from engine.sampling.scores import as_scores, scores

SLAB_LOGITS = 1 << 22
"""Logits of one slab, each of which takes about 30 bytes until its scores are made."""
Rows = NDArray[np.int64]
Upload = Callable[[Rows], Tensor]
"""An array to where the model is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """The rows of a step whose hidden states are wanted, chunk by chunk."""

    rows_R: Rows
    """Indices into the step's tokens, ascending."""
    sampled_R: Rows
    """Which of those are sampled by, in the order of the chunks that sample."""
    chunks: Sequence[Chunk]
    """Those that read."""
    places: Sequence[slice]
    """Their rows, among `rows_R`."""


def read_plan(chunks: Sequence[Chunk]) -> ReadPlan | None:
    """None: no chunk reads."""
    if all(chunk.read is None for chunk in chunks):
        return None
    rows, sampled, places, start = list[int](), list[int](), list[slice](), 0
    for chunk in chunks:
        if chunk.read is not None:
            places.append(slice(len(rows), len(rows) + len(chunk.read.rows)))
            rows += [start + place for place in chunk.read.rows]
        start += len(chunk.token_ids)
        if chunk.sampling is not None:
            sampled.append(len(rows))
            rows.append(start - 1)
    return ReadPlan(
        rows_R=np.array(rows, np.int64), sampled_R=np.array(sampled, np.int64), places=places,
        chunks=[chunk for chunk in chunks if chunk.read is not None],
    )  # fmt: skip


def read_rows(model: Model, hidden_RK: Tensor, plan: ReadPlan, *, upload: Upload) -> list[Tensor]:
    """Of each chunk that reads, float64: [S, 2 + 2 N] as `engine.sampling.scores.scores`, or [K],
    a sum."""
    return [
        _read(model, hidden_RK[place], chunk, upload)
        for chunk, place in zip(plan.chunks, plan.places, strict=True)
    ]


def as_readings(plan: ReadPlan, read: Sequence[Tensor]) -> StepReadings:
    """What `read_rows` answered, on the host."""
    pairs = zip(plan.chunks, read, strict=True)
    return {chunk.sequence: _as_read(chunk, found) for chunk, found in pairs}


def _read(model: Model, hidden_SK: Tensor, chunk: Chunk, upload: Upload) -> Tensor:
    assert chunk.read is not None, "the chunk reads nothing"
    targets, num_top = chunk.read.targets, chunk.read.num_top
    if targets is None:
        return hidden_SK.double().sum(dim=0)
    targets_S = upload(np.array(targets, np.int64))
    size = max(1, SLAB_LOGITS // model.config.vocab_size)
    slabs = zip(torch.split(hidden_SK, size), torch.split(targets_S, size), strict=True)
    return torch.cat([scores(model.logits(x_SK), ids_S, num_top=num_top) for x_SK, ids_S in slabs])


def _as_read(chunk: Chunk, found: Tensor) -> RowsRead:
    assert chunk.read is not None, "the chunk reads nothing"
    if chunk.read.targets is None:
        return SummedRows(num_rows=len(chunk.read.rows), values=array("d", found.tolist()))
    return ScoredRows(scores=as_scores(found.tolist(), chunk.read.targets))
