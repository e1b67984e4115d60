"""The `engine.runner.contract.Runner` of a GPU: launches steps ahead of the host, reads tokens
late.

Not thread-safe: one thread calls it. A step is one upload, a forward (a captured one where every
chunk is a decode), the sampling on the device, and one copy of the tokens back; the host waits for
that copy's event alone, in `LaunchedStep.tokens`. torch.compile is not used: what lies between the
kernels is captured with them.

A step of decodes and prompt chunks may be two of that kind, the decodes' first
(`engine.runner.gpu.mixed_steps` says when): neither reads what the other writes. A decode writes
into a block that its sequence alone has, and reads those that it had before; of blocks that several
have none is found before the step that wrote it was read (`engine.scheduling`).
"""

# Shapes: R rows sampled, A of them with logprobs, N most likely tokens reported, V vocabulary.

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from engine.batch import Chunk
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
from engine.runner.gpu.device import Device
from engine.runner.gpu.graphs import DecodeGraphs, decode_sizes, parts_of, size_for
from engine.runner.gpu.last_tokens import LastTokens
from engine.runner.gpu.launched import LaunchedPart, LaunchedStep
from engine.runner.gpu.penalties import Penalties, StepPenalties
from engine.runner.gpu.upload import Upload, fetch, upload_array, upload_bytes
from engine.runner.prompt_rows import ReadPlan, read_plan, read_rows
from engine.sampling.masks import TokenMasker, mask_tokens
from engine.sampling.penalties import ScorePenaliser, penalise
from engine.sampling.rows import TokenSampler, logprobs, rows_with_logprobs

ReadyPart = tuple[StepArrays, StepPenalties, Sequence[Chunk]]


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
        penaliser: ScorePenaliser = penalise,
        limits: EngineLimits,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """Model and pool lie on the device; `eos_token_ids` as the engine's: those that
        `min_tokens` bans. Captures nothing yet."""
        self._model, self._pool, self._device, self._sampler = model, pool, device, sampler
        self.layout, self.num_blocks, self.depth = pool.layout, pool.num_blocks, device.depth
        self._limits, self.eos_token_ids = limits, tuple(eos_token_ids)
        self.runs_apart = True
        """Of a step with chunks of prompts the decodes run as captured, apart from the rest."""
        self._windows = tuple(group.window for group in model.config.kv_groups)
        max_blocks = widest_table(limits.max_context_tokens, pool.layout)
        self._last = LastTokens(device, max_rows=limits.max_running)
        self._penalties = Penalties(
            device, max_rows=limits.max_running, vocab_size=model.config.vocab_size,
            eos_token_ids=eos_token_ids, last=self._last, masker=masker, penaliser=penaliser,
        )  # fmt: skip
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
        parts = parts_of(chunks, self._graphs.sizes) if self.runs_apart else [list(chunks)]
        try:
            ready = self._prepare(parts)
            copy_blocks(chunks, self._pool)
            return LaunchedStep(parts=[self._launched(*part) for part in ready])
        except Exception:
            self._penalties.forget(chunks)
            self._device.record().wait()
            raise

    def _prepare(self, parts: Sequence[Sequence[Chunk]]) -> list[ReadyPart]:
        """Whatever may be refused is, before any of it is launched."""
        penalties = [self._penalties.plan(_asking(part)) for part in parts]
        feeds, keeps = map(iter, self._last.reserve_places([c for part in parts for c in part]))
        arrays = [
            step_arrays(
                part, self.layout, windows=self._windows, reaches=self._model.takes_reaches,
                feeds=list(islice(feeds, len(part))),
                keeps=list(islice(keeps, len(_asking(part)))),
            )
            for part in parts
        ]  # fmt: skip
        return list(zip(arrays, penalties, parts, strict=True))

    def _launched(
        self,
        arrays: StepArrays,
        penalties: StepPenalties,
        chunks: Sequence[Chunk],
    ) -> LaunchedPart:
        plan, read, asking = read_plan(chunks), list[Tensor](), _asking(chunks)
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
        return LaunchedPart(
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
            full = padded(arrays, size, nowhere=self._last.nowhere)
            if self._graphs.holds(full):
                step = self._upload.upload_step(full)
                return step, self._graphs.run(step)
        step = self._upload.upload_step(arrays)
        token_ids_T = self._last.with_pending(step.token_ids_T, step.feed_T)
        return step, self._model.forward(step.inputs(token_ids_T, step.tables_GSB), self._pool)

    def _sampled(self, step: StepTensors, logits_RV: Tensor, penalties: StepPenalties) -> Tensor:
        """Token ids [R], kept on the device for the next step too."""
        num_rows = len(logits_RV)
        shaped_RV, rules = self._penalties.penalise_rows(logits_RV, penalties)
        sampled_R = self._sampler(shaped_RV, step.rules(num_rows))
        self._last.keep_tokens(sampled_R, step.keep_R[:num_rows])
        self._penalties.count_tokens(sampled_R, rules)
        return sampled_R

    def _report(self, logits_RV: Tensor, sampled_R: Tensor, num_top: Mapping[int, int]) -> Tensor:
        rows_A = upload_array(self._device, np.array(list(num_top), np.int64))
        reports = logprobs(logits_RV[rows_A], sampled_R[rows_A], num_top=max(num_top.values()))
        return fetch(self._device, reports)


def _asking(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Those that sample."""
    return [chunk for chunk in chunks if chunk.sampling is not None]
