"""What the checks of the engine's kernels share: ops, noise, and cases over the paged pool.

On the CPU under Triton's interpreter, else on the GPU.
"""

# Shapes: H query heads, G KV heads, D head dim.

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from support.forwards import chunk
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import HeadShape, Ops
from engine.ops.inputs import ForwardInputs, forward_inputs, with_work
from engine.ops.torch_ops import TorchOps
from engine.ops.triton.ops import TritonOps
from protocol.layout import KvLayout

F32, BF16 = torch.float32, torch.bfloat16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
OURS, TWIN = TritonOps(io_dtype=F32), TorchOps(io_dtype=F32)
BOTH: tuple[Ops, Ops] = (OURS, TWIN)
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def noise(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return made.to(DEVICE)


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences as (tokens already in the pool, tokens of this step)."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_tokens: int = 8
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    norms: str = "none"
    num_turned: int | None = 16
    sequences: Sequence[tuple[int, int]] = ((0, 5), (31, 1), (32, 1), (20, 19), (7, 9))

    @property
    def num_blocks(self) -> int:
        """Of each sequence."""
        return max(-(-(before + now) // self.block_tokens) for before, now in self.sequences)

    @property
    def heads(self) -> HeadShape:
        dim = self.head_dim
        sizes = {
            "none": None, "head": (dim, dim),
            "whole": (dim * self.num_heads, dim * self.num_kv_heads),
            "layer": (dim * self.num_heads, dim * self.num_kv_heads),
        }[self.norms]  # fmt: skip
        q_norm, k_norm = (None, None) if sizes is None else (noise(size) for size in sizes)
        return HeadShape(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=dim,
            scale=dim**-0.5,
            layer=1,
            window=self.window,
            softcap=self.softcap,
            q_norm=q_norm,
            k_norm=k_norm,
            centred_norms=self.norms == "layer",
            sinks_H=noise(self.num_heads, seed=12) if self.sinks else None,
        )

    def inputs(self) -> ForwardInputs:
        count = len(self.sequences) * self.num_blocks
        dice = torch.Generator().manual_seed(3)
        order = torch.randperm(count, generator=dice, device="cpu")
        tables = order.view(len(self.sequences), -1).tolist()
        chunks = [
            chunk([0] * now, start=before, table=table)
            for (before, now), table in zip(self.sequences, tables, strict=True)
        ]
        return self.cut(forward_inputs(chunks, block_tokens=self.block_tokens))

    def cut(self, inputs: ForwardInputs) -> ForwardInputs:
        """With the work of its lengths and contexts, on the device."""
        here = replace(inputs, starts_S1=inputs.starts_S1.cpu(), ends_S=inputs.ends_S.cpu())
        made = with_work(here, [self.window])
        found = {field.name: getattr(made, field.name) for field in fields(made)}
        there = {k: v.to(DEVICE) for k, v in found.items() if isinstance(v, Tensor)}
        return replace(made, **there)

    def pool(self) -> KvPool:
        layout = KvLayout(
            num_layers=2,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=self.block_tokens,
            dtype="float32",
        )
        pool = KvPool(layout, self.num_blocks * len(self.sequences))
        pool.tensor.copy_(noise(*pool.tensor.shape, seed=4))
        return pool

    def qkv(self) -> Tensor:
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return noise(sum(now for _, now in self.sequences), width, seed=5)
