"""Decode steps captured once for each of some batch sizes, and replayed at the cost of a launch.

A captured step reads the upload's buffer and tables of full width, so nothing about it changes
from step to step; a batch takes the next size up, its rest filled with rows that touch no KV.
"""

# Shapes: S sequences of a batch, G KV groups, B blocks of the widest table, V vocabulary.

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from engine.batch import Chunk
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.work import AttentionWork, decode_work
from engine.runner.gpu.arrays import StepArrays, StepTensors, empty_decode, is_decode
from engine.runner.gpu.device import Device, Step
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.upload import Upload

log = logging.getLogger(__name__)

_SMALL_SIZES = (1, 2, 4)
_GRAIN = 8
"""Beyond the small ones: at most 7 rows of a batch are empty. Up to it sizes are captured whatever
they take: they gain the most by it, and their scratch memory is small."""


def decode_sizes(max_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16, 24, 32, ... and the largest batch itself; ascending."""
    regular = (*_SMALL_SIZES, *range(_GRAIN, max_rows, _GRAIN))
    return (*(size for size in regular if size < max_rows), max_rows)


def size_for(num_rows: int, sizes: Iterable[int]) -> int | None:
    """The smallest of `sizes` that holds so many rows; None: none does."""
    return min((size for size in sizes if size >= num_rows), default=None)


def parts_of(chunks: Sequence[Chunk], sizes: Iterable[int]) -> list[list[Chunk]]:
    """What is computed by forwards of their own, one after the other: decodes of which one of
    `sizes` is captured, and the rest. Who has rows read is no decode: a captured step leaves
    logits alone."""
    if is_decode(chunks):
        return [list(chunks)]
    decodes = [chunk for chunk in chunks if is_decode([chunk]) and chunk.read is None]
    if not decodes or size_for(len(decodes), sizes) is None:
        return [list(chunks)]
    held = {chunk.sequence for chunk in decodes}
    return [decodes, [chunk for chunk in chunks if chunk.sequence not in held]]


@dataclass(slots=True, kw_only=True, eq=False)
class DecodeGraphs:
    """Given is what every captured step works with."""

    device: Device
    model: Model
    pool: KvPool
    upload: Upload
    last: LastTokens
    max_blocks: int
    """Width of the tables."""
    _steps: dict[int, Step] = field(default_factory=dict, init=False)
    _tables: Tensor = field(init=False)
    _logits_SV: Tensor = field(init=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those captured."""
        return tuple(sorted(self._steps))

    def capture(self, sizes: Iterable[int], *, limit_bytes: int) -> int:
        """Capture the largest first, so that the others find their scratch memory made; only
        those of up to 8 rows once `limit_bytes` are taken. What they took."""
        largest, where = max(sizes), self.device.where
        before = self.device.held_bytes()
        num_entries = self.pool.layout.num_groups * largest * self.max_blocks
        self._tables = torch.zeros(num_entries, dtype=torch.int32, device=where)
        # One place for the logits of all: each graph would keep its own while the others live.
        self._logits_SV = torch.empty(largest, self.model.config.vocab_size, device=where)
        taken, left_out = 0, 0
        for size in sorted(sizes, reverse=True):
            if taken > limit_bytes and size > _GRAIN:
                left_out += 1
                continue
            self._steps[size] = self._captured(size)
            taken = self.device.held_bytes() - before
        if left_out:
            log.warning(
                "not all decode steps are captured",
                extra={"left_out": left_out, "bytes": taken, "limit_bytes": limit_bytes},
            )
        return taken

    def holds(self, step: StepArrays) -> bool:
        """Whether a step filled up to a captured size fits the scratch it was captured with: not
        where many sequences share long contexts."""
        passes_G = self._work_of(len(step.ends_S)).passes_G
        return int(step.slots_GS1[:, -1].max()) <= passes_G[0][0].num_slots

    def run(self, step: StepTensors) -> Tensor:
        """Logits float32 [S, V] of an uploaded step of a captured size; valid until the next."""
        size = len(step.ends_S)
        width = step.tables_GSB.shape[2]
        # Entries beyond the width are of earlier steps: valid blocks, which no row reaches.
        self._tables_of(size)[:, :, :width].copy_(step.tables_GSB)
        self._steps[size]()
        return self._logits_SV[:size]

    def _captured(self, size: int) -> Step:
        num_groups, nowhere = self.pool.layout.num_groups, self.last.nowhere
        empty = empty_decode(
            size, num_groups=num_groups, num_blocks=1, nowhere=nowhere,
            reaches=self.model.takes_reaches,
        )  # fmt: skip
        empty = replace(empty, work=self._work_of(size))
        step, tables_GSB = self.upload.upload_step(empty), self._tables_of(size)

        def decode() -> None:
            token_ids_T = self.last.with_pending(step.token_ids_T, step.feed_T)
            inputs = step.inputs(token_ids_T, tables_GSB)
            self.model.forward(inputs, self.pool, out=self._logits_SV[:size])

        return self.device.capture(decode)

    def _work_of(self, size: int) -> AttentionWork:
        layout = self.pool.layout
        num_blocks = min(self.max_blocks, self.pool.num_blocks)
        return decode_work(
            size, num_groups=layout.num_groups,
            max_context_tokens=num_blocks * layout.block_tokens,
        )  # fmt: skip

    def _tables_of(self, size: int) -> Tensor:
        num_groups, width = self.pool.layout.num_groups, self.max_blocks
        return self._tables[: num_groups * size * width].view(num_groups, size, width)
