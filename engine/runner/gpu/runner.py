"""The `engine.runner.contract.Runner` of a GPU: launches steps ahead of the host, reads tokens
late.

Not thread-safe: one thread calls it. A step is one upload, a forward (a captured one where every
chunk is a decode), the sampling on the device, and one copy of the tokens back; the host waits for
that copy's event alone, in `LaunchedStep.tokens`. torch.compile is not used: what lies between the
kernels is captured with them.
"""

# Shapes: R rows sampled, A of them with logprobs, N most likely tokens reported, V vocabulary.

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.batch import Chunk, SampledToken, SequenceId, StepReadings, StepTokens
from engine.kvcache.pool import KvPool
from engine.limits import EngineLimits
from engine.models.model import Model
from engine.runner.block_copies import copy_blocks
from engine.runner.gpu.arrays import (
    StepArrays,
    StepTensors,
    is_decode,
    padded,
    step_arrays,
    widest_table,
)
from engine.runner.gpu.device import Device, StepEvent
from engine.runner.gpu.graphs import DecodeGraphs, decode_sizes, size_for
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.penalties import Penalties, penalised, penalties_of
from engine.runner.gpu.upload import Upload, fetch, upload_array, upload_bytes
from engine.runner.prompt_rows import ReadPlan, as_readings, read_plan, read_rows
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.rows import NO_TOKEN, TokenSampler, logprobs, rows_with_logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """On its way: its tokens come to host memory, and an event says when they are there."""

    asking: Sequence[Chunk]
    """Those that sample, row r of chunk r."""
    event: StepEvent
    tokens_R: Tensor
    """Host memory, filled when the event has happened; so is the next."""
    reports: Tensor
    """[A, 1 + 2 N] as `engine.sampling.rows.logprobs`, of the rows that ask, in order."""
    num_top: Mapping[int, int]
    """How many of the most likely each of them wants, by row."""
    plan: ReadPlan | None
    read: Sequence[Tensor]
    """Host memory, as the tokens: what the plan's chunks read."""

    def readings(self) -> StepReadings:
        return {} if self.plan is None else as_readings(self.plan, self.read)

    def tokens(self) -> StepTokens:
        """As the contract; raises RuntimeError when the device failed."""
        self.event.wait()  # also where nothing is sampled: the KV is written then
        reports = dict(zip(self.num_top, self.reports.tolist(), strict=True))
        sampled: dict[SequenceId, Sequence[SampledToken]] = {}
        for row, (chunk, token) in enumerate(zip(self.asking, self.tokens_R.tolist(), strict=True)):
            if token != NO_TOKEN:
                sampled[chunk.sequence] = (self._reported(token, row, reports.get(row)),)
        return sampled

    def _reported(self, token: int, row: int, report: list[float] | None) -> SampledToken:
        if report is None:
            return SampledToken(token_id=token)
        most = (len(report) - 1) // 2
        ids, values = report[1 : 1 + most], report[1 + most :]
        pairs = list(zip(map(int, ids), values, strict=True))[: self.num_top[row]]
        return SampledToken(token_id=token, logprob=report[0], top=tuple(pairs))


class DeviceRunner:
    """Steps are computed in the order they are launched, so a block that one wrote may be read
    by the next, and one that was freed be written again."""

    def __init__(
        self,
        model: Model,
        pool: KvPool,
        *,
        device: Device,
        sampler: TokenSampler,
        masker: TokenMasker = mask_tokens,
        limits: EngineLimits,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """Model and pool lie on the device; `eos_token_ids` as the engine's: those that
        `min_tokens` bans. Captures nothing yet."""
        self._model, self._pool, self._device, self._sampler = model, pool, device, sampler
        self.layout, self.num_blocks, self.depth = pool.layout, pool.num_blocks, device.depth
        self._masker, self._limits = masker, limits
        self.eos_token_ids = tuple(eos_token_ids)
        max_blocks = widest_table(limits.max_context_tokens, pool.layout)
        self._last = LastTokens(device, max_rows=limits.max_running)
        self._upload = Upload(
            device,
            num_bytes=upload_bytes(
                max_tokens=limits.token_budget,
                max_rows=limits.max_running,
                max_blocks=max_blocks,
                num_groups=pool.layout.num_groups,
            ),
        )
        self._graphs = DecodeGraphs(
            device=device, model=model, pool=pool, upload=self._upload, last=self._last,
            max_blocks=max_blocks,
        )  # fmt: skip

    @property
    def captured_sizes(self) -> tuple[int, ...]:
        """Batches of decodes that are replayed; larger ones, and all without any, are launched
        kernel by kernel."""
        return self._graphs.sizes

    @torch.inference_mode()
    def capture(self, *, limit_bytes: int, sizes: Sequence[int] = ()) -> int:
        """Capture decode steps, before the first launch, of `sizes` sequences or of those that
        serve best; what they took of the device's memory: little more than `limit_bytes`, or what
        the small sizes need."""
        self._device.bind()
        sizes = sizes or decode_sizes(self._limits.max_running)
        return self._graphs.capture(sizes, limit_bytes=limit_bytes)

    @torch.inference_mode()
    def launch(self, chunks: Sequence[Chunk]) -> LaunchedStep:
        """At most `depth` may be unread. Raises ValueError for a chunk that does not fit its
        block table, or has a pending token that no unread step samples; whatever it raises,
        nothing of the step is under way then."""
        self._device.bind()
        asking = [chunk for chunk in chunks if chunk.sampling is not None]
        penalties = penalties_of(
            asking, eos_token_ids=self.eos_token_ids, vocab_size=self._model.config.vocab_size
        )
        feeds, keeps = self._last.reserve_places(chunks)
        arrays = step_arrays(
            chunks, self.layout, feeds=feeds, keeps=keeps, reaches=self._model.takes_reaches
        )
        try:
            return self._launched(arrays, asking, penalties, chunks)
        except Exception:
            self._device.record().wait()
            raise

    def _launched(
        self,
        arrays: StepArrays,
        asking: Sequence[Chunk],
        penalties: Penalties,
        chunks: Sequence[Chunk],
    ) -> LaunchedStep:
        plan, read = read_plan(chunks), list[Tensor]()
        copy_blocks(chunks, self._pool)
        if plan is None:
            step, logits_RV = self._forward(arrays, decode=is_decode(chunks))
        else:
            step, logits_RV, read = self._read(arrays, plan)
        tokens_R, num_top = torch.empty(0, dtype=torch.int64), rows_with_logprobs(asking)
        reports = torch.empty(0, 1)
        if asking:
            sampled_R = self._sampled(step, logits_RV[: len(asking)], penalties)
            if num_top:
                reports = self._report(logits_RV, sampled_R, num_top)
            tokens_R = fetch(self._device, sampled_R)
        return LaunchedStep(
            asking=asking, event=self._device.record(), tokens_R=tokens_R, reports=reports,
            num_top=num_top, plan=plan, read=read,
        )  # fmt: skip

    def _read(self, arrays: StepArrays, plan: ReadPlan) -> tuple[StepTensors, Tensor, list[Tensor]]:
        """As `_forward`, and what the plan's chunks read, on its way to the host."""
        upload = partial(upload_array, self._device)
        step = self._upload.upload_step(arrays)
        token_ids_T = self._last.with_pending(step.token_ids_T, step.feed_T)
        inputs = step.inputs(token_ids_T, step.tables_GSB)
        hidden_RK = self._model.hidden(replace(inputs, rows_R=upload(plan.rows_R)), self._pool)
        assert hidden_RK is not None, "rows were asked for"
        read = read_rows(self._model, hidden_RK, plan, upload=upload)
        logits_RV = self._model.logits(hidden_RK[upload(plan.sampled_R)])
        return step, logits_RV, [fetch(self._device, found) for found in read]

    def _forward(self, arrays: StepArrays, *, decode: bool) -> tuple[StepTensors, Tensor]:
        """The step as uploaded, and its logits [R, V], or more rows where it was filled up."""
        size = size_for(len(arrays.ends_S), self._graphs.sizes) if decode else None
        if size is not None:
            step = self._upload.upload_step(padded(arrays, size, nowhere=self._last.nowhere))
            return step, self._graphs.run(step)
        step = self._upload.upload_step(arrays)
        token_ids_T = self._last.with_pending(step.token_ids_T, step.feed_T)
        return step, self._model.forward(step.inputs(token_ids_T, step.tables_GSB), self._pool)

    def _sampled(self, step: StepTensors, logits_RV: Tensor, penalties: Penalties) -> Tensor:
        """Token ids [R], kept on the device for the next step too."""
        num_rows = len(logits_RV)
        shaped_RV = penalised(logits_RV, penalties, self._device, masker=self._masker)
        sampled_R = self._sampler(shaped_RV, step.rules(num_rows))
        self._last.keep_tokens(sampled_R, step.keep_R[:num_rows])
        return sampled_R

    def _report(self, logits_RV: Tensor, sampled_R: Tensor, num_top: Mapping[int, int]) -> Tensor:
        rows_A = upload_array(self._device, np.array(list(num_top), np.int64))
        reports = logprobs(logits_RV[rows_A], sampled_R[rows_A], num_top=max(num_top.values()))
        return fetch(self._device, reports)
