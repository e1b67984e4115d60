"""The `engine.runner.contract.Runner` of a CPU: a model, a pool, a sampler.

Not thread-safe: one thread calls it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.batch import Chunk, StepReadings
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.inputs import ForwardInputs, forward_inputs
from engine.runner.block_copies import copy_blocks
from engine.runner.contract import ComputedStep
from engine.runner.prompt_rows import as_readings, read_plan, read_rows
from engine.sampling.sampler import sample_tokens


class TorchRunner:
    """Computes steps; when `launch` returns, every chunk's KV is in the pool."""

    def __init__(self, model: Model, pool: KvPool, *, eos_token_ids: Collection[int] = ()) -> None:
        """`eos_token_ids` as the engine's: those that `min_tokens` bans."""
        self._model, self._pool = model, pool
        self.layout, self.num_blocks, self.depth = pool.layout, pool.num_blocks, 1
        self.eos_token_ids = tuple(eos_token_ids)

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk]) -> ComputedStep:
        """Raises ValueError for a chunk that does not fit its block table."""
        inputs = forward_inputs(
            chunks, block_tokens=self.layout.block_tokens, num_groups=self.layout.num_groups,
            reaches=self._model.takes_reaches,
        )  # fmt: skip
        copy_blocks(chunks, self._pool)
        logits_RV, readings = self._computed(chunks, inputs)
        asking = [chunk for chunk in chunks if chunk.sampling is not None]
        tokens = sample_tokens(logits_RV, asking, eos_token_ids=self.eos_token_ids)
        pairs = zip(asking, tokens, strict=True)
        return ComputedStep(
            {chunk.sequence: (token,) for chunk, token in pairs if token is not None}, readings
        )

    def _computed(
        self, chunks: Sequence[Chunk], inputs: ForwardInputs
    ) -> tuple[Tensor, StepReadings]:
        """Logits of the rows sampled by, and what else is read."""
        plan = read_plan(chunks)
        if plan is None:
            return self._model.forward(inputs, self._pool), {}
        rows_R = torch.from_numpy(plan.rows_R)
        hidden_RK = self._model.hidden(replace(inputs, rows_R=rows_R), self._pool)
        assert hidden_RK is not None, "rows were asked for"
        read = read_rows(self._model, hidden_RK, plan, upload=torch.from_numpy)
        sampled_R = torch.from_numpy(plan.sampled_R)
        return self._model.logits(hidden_RK[sampled_R]), as_readings(plan, read)
