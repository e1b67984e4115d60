"""The attention kernel of decode and of prefill, beside torch's SDPA and FlashInfer.

The peers answer the same numbers, or their time is not reported. SDPA reads keys and values laid
out for it, without the gathering that paging would cost it.
"""

# Shapes: B sequences, T tokens, C context tokens, H query heads, G KV heads, D head dim.

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.clock import seconds
from bench.gpu.engine_side import BLOCK_TOKENS
from engine.kvcache.pool import KvPool
from engine.models.model import Dtype
from engine.ops.contract import HeadShape, Ops
from engine.ops.inputs import ForwardInputs
from engine.ops.work import slots, work
from engine.runner.gpu.device import Device
from protocol.layout import KvLayout
from tools.make_checkpoint import Shape

TOLERANCE = 3e-2
"""Of the largest number: what rounding to bfloat16 in other orders comes to."""
WORKSPACE_BYTES = 128 << 20
Outcome = dict[str, float | str]


class PagedBatch:
    """`batch` sequences of `context` tokens, of which the last `num_new` are queries."""

    def __init__(
        self, shape: Shape, *, batch: int, context: int, num_new: int, device: Device, dtype: Dtype
    ) -> None:
        dim = shape.head_dim or shape.hidden // shape.heads
        self.device, self.batch, self.context, self.num_new = device, batch, context, num_new
        self.heads = HeadShape(
            num_heads=shape.heads, num_kv_heads=shape.kv_heads, head_dim=dim, scale=dim**-0.5,
            layer=0,
        )  # fmt: skip
        layout = KvLayout(
            # All of them: the next block is as far away as it is for a model.
            num_layers=shape.layers, num_kv_heads=shape.kv_heads, head_dim=dim,
            block_tokens=BLOCK_TOKENS, dtype=dtype,
        )  # fmt: skip
        self.num_blocks = -(-context // BLOCK_TOKENS)
        self.pool = KvPool(layout, batch * self.num_blocks, device=device.where)
        self.pool.tensor.normal_()
        width = (shape.heads + 2 * shape.kv_heads) * dim
        self.qkv = torch.randn(
            batch * num_new, width, device=device.where, dtype=self.pool.tensor.dtype
        )
        # Scattered, as blocks are after a while of serving.
        self.table_SB = torch.randperm(batch * self.num_blocks).view(batch, -1).int()

    def inputs(self) -> ForwardInputs:
        where, num_tokens = self.device.where, self.batch * self.num_new
        nothing_T = torch.zeros(num_tokens, dtype=torch.int64, device=where)
        lengths_S = np.full(self.batch, self.num_new, np.int64)
        slots_GS1 = slots(lengths_S, np.full(self.batch, self.context, np.int64), [None])
        return ForwardInputs(
            token_ids_T=nothing_T, positions_T=nothing_T, slots_GT=nothing_T[None],
            starts_S1=torch.arange(self.batch + 1, dtype=torch.int32, device=where) * self.num_new,
            ends_S=torch.full((self.batch,), self.context, dtype=torch.int32, device=where),
            tables_GSB=self.table_SB[None].to(where), rows_R=nothing_T[:0],
            slots_GS1=torch.from_numpy(slots_GS1).to(where), work=work(lengths_S, slots_GS1),
        )  # fmt: skip

    def queries(self) -> Tensor:
        """[B, H, T, D]."""
        heads = self.heads
        q_THD = self.qkv.view(len(self.qkv), -1, heads.head_dim)[:, : heads.num_heads]
        return q_THD.reshape(self.batch, self.num_new, *q_THD.shape[1:]).transpose(1, 2)

    def contiguous(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, C, D]."""
        table = self.table_SB.to(self.device.where).long()
        both = self.pool.tensor[:, 0][table]  # [B, blocks, 2, G, S, D]
        both = both.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[:, :, :, : self.context]
        return both[0].contiguous(), both[1].contiguous()


def measure(batch: PagedBatch, ops: Ops, *, times: int) -> Mapping[str, Outcome]:
    """Microseconds of each, and by how much the peers differ; a peer that fails says why."""
    inputs = batch.inputs()

    def ours() -> Tensor:
        return ops.attend(batch.qkv, batch.heads, batch.pool, inputs)

    expected = ours().float()
    results: dict[str, Outcome] = {"ours": {"us": _us(batch.device, ours, times)}}
    for name, make in {"sdpa": sdpa, "flashinfer": flashinfer}.items():
        try:
            results[name] = _beside(batch, make(batch), expected, times)
        except Exception as error:  # whatever a peer does is a result, not our end
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return results


def sdpa(batch: PagedBatch) -> Callable[[], Tensor]:
    q_BHTD, (k_BGCD, v_BGCD) = batch.queries(), batch.contiguous()
    assert batch.num_new in (1, batch.context), "its causal mask begins at the first key"

    def run() -> Tensor:
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BGCD, v_BGCD, is_causal=batch.num_new > 1, enable_gqa=True
        )
        return out_BHTD.transpose(1, 2).flatten(2).flatten(0, 1)

    return run


def flashinfer(batch: PagedBatch) -> Callable[[], Tensor]:
    library: Any = importlib.import_module("flashinfer")
    where, heads = batch.device.where, batch.heads
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=where)
    pages = torch.arange(batch.batch + 1, dtype=torch.int32, device=where) * batch.num_blocks
    last = torch.full(
        (batch.batch,), (batch.context - 1) % BLOCK_TOKENS + 1, dtype=torch.int32, device=where
    )
    table = batch.table_SB.flatten().to(where)
    sizes = (heads.num_heads, heads.num_kv_heads, heads.head_dim, BLOCK_TOKENS)
    q_THD = batch.qkv.view(len(batch.qkv), -1, heads.head_dim)[:, : heads.num_heads].contiguous()
    kinds = {"q_data_type": q_THD.dtype, "kv_data_type": q_THD.dtype}
    if batch.num_new == 1:
        wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
        wrapper.plan(pages, table, last, *sizes, **kinds)
    else:
        starts = torch.arange(batch.batch + 1, dtype=torch.int32, device=where) * batch.num_new
        wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        wrapper.plan(starts, pages, table, last, *sizes, causal=True, **kinds)
    pool = batch.pool.tensor[:, 0].contiguous()  # [blocks, 2, G, S, D]: its HND layout

    def run() -> Tensor:
        out_THD: Tensor = wrapper.run(q_THD, pool)
        return out_THD.flatten(1)

    return run


def _beside(batch: PagedBatch, run: Callable[[], Tensor], expected: Tensor, times: int) -> Outcome:
    difference = ((run().float() - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        return {"failed": f"its numbers differ by {difference:.3g} of the largest"}
    return {"us": _us(batch.device, run, times), "differs_by": difference}


def _us(device: Device, run: Callable[[], Tensor], times: int) -> float:
    """Captured first: launching it takes the host longer than the device takes to do it."""

    def step() -> None:
        run()

    return 1e6 * seconds(device, device.capture(step), times=times)
