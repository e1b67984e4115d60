"""A model of two layers by the device's kernels and by torch on the same device: equal enough?

    python -m bench.gpu.forward [--toy] [--pool-gib N] [--name NAME]

Its blocks are the last ones of a pool of N GiB, further from its beginning than 32 bits count. Rows
are sampled with filters, beside the CPU's sampler. Tells a row each; ends with 1 where one is not.
"""

# Shapes: T tokens, R rows, V vocabulary.

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu.shapes import LLAMA_8B, TOY, write_config
from bench.gpu.weights import RandomCheckpoint
from bench.row import Row, tell
from engine.batch import Chunk, SequenceId
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import DTYPES, Dtype, Model
from engine.ops.contract import Ops
from engine.ops.inputs import ForwardInputs, forward_inputs, with_work
from engine.ops.torch_ops import TorchOps
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import open_device, ops_for, token_sampler_for
from engine.sampling.rows import RowRules, TokenSampler, sample_on_host
from protocol.messages import Sampling
from tools.make_checkpoint import Shape

BLOCK_TOKENS = 16
BOUND = 3e-2
"""Of the largest logit: what bfloat16 in other orders comes to over two layers."""
Lengths = Sequence[tuple[int, int]]
"""Sequences as (tokens before, tokens of this step)."""
LENGTHS: Lengths = ((0, 70), (63, 1), (1_300, 1), (20, 45), (1_100, 5))
"""Of decodes and of chunks one is in several splits of attention."""
TOY_LENGTHS: Lengths = ((0, 2), (600, 1), (1_100, 5))
NUM_ROWS = 64
TOY_ROWS = 4
LEAST_EQUAL = 0.95
"""Of sampled tokens: where two scores differ in the last bits either may win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    device: Device
    shape: Shape
    pool_bytes: int
    lengths: Lengths = LENGTHS
    num_rows: int = NUM_ROWS
    """That are sampled."""

    @property
    def num_blocks(self) -> int:
        """That the sequences have."""
        return sum(-(-(before + now) // BLOCK_TOKENS) for before, now in self.lengths)

    @property
    def dtype(self) -> Dtype:
        return "bfloat16" if self.shape.dtype == "bfloat16" else "float32"


def main() -> int:
    asked = _arguments()
    place = _place(asked)
    place.device.bind()
    logits, twin = logits_of(place)
    difference = float((logits - twin).abs().max() / twin.abs().max())
    tell(Row(
        part=asked.name, result=f"logits differ by {difference:.2g} of the largest",
        limit=f"{BOUND:g}", passed=difference <= BOUND,
    ))  # fmt: skip
    equal = equal_tokens(place, twin)
    tell(Row(
        part=f"{asked.name}, sampled", result=f"{equal:.0%} of tokens are the CPU's",
        limit=f"{LEAST_EQUAL:.0%}", passed=equal >= LEAST_EQUAL,
    ))  # fmt: skip
    return 0 if difference <= BOUND and equal >= LEAST_EQUAL else 1


def logits_of(place: Place) -> tuple[Tensor, Tensor]:
    """[R, V] of the kernels and of torch, over one pool: each writes what it reads."""
    dtype = DTYPES[place.dtype]
    kernels = _model(place, _kernels(place, dtype))
    (layout,) = kernels.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype=place.dtype)
    pool = KvPool(layout, place.pool_bytes // layout.block_bytes, device=place.device.where)
    windows = [group.window for group in kernels.config.kv_groups]
    inputs = _on(
        place.device, with_work(far_inputs(place, pool_blocks=pool.tensor.shape[0]), windows)
    )
    pool.tensor[-place.num_blocks :].normal_()
    before = pool.tensor[-place.num_blocks :].clone()
    got = kernels.forward(inputs, pool).float()
    pool.tensor[-place.num_blocks :] = before
    twin = _model(place, TorchOps(io_dtype=dtype)).forward(inputs, pool).float()
    assert bool(got.isfinite().all()), "a logit of the kernels is no number"
    return got, twin


def equal_tokens(place: Place, logits_RV: Tensor) -> float:
    """The share of rows whose token is that of the CPU's sampler, with top_k and top_p."""
    rows_RV = logits_RV[torch.arange(place.num_rows) % len(logits_RV)].contiguous()

    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((place.num_rows,), value, dtype=dtype, device=rows_RV.device)

    rules = RowRules(
        temperature_R=column(0.7, torch.float32), top_k_R=column(50, torch.int32),
        top_p_R=column(0.9, torch.float32), min_p_R=column(0.0, torch.float32),
        seed_R=column(1, torch.int64),
        position_R=torch.arange(place.num_rows, dtype=torch.int64, device=rows_RV.device),
    )  # fmt: skip
    got_R = _sampler(place.device)(rows_RV, rules).cpu()
    on_host = {one.name: getattr(rules, one.name).cpu() for one in fields(rules)}
    return float((got_R == sample_on_host(rows_RV.cpu(), RowRules(**on_host))).float().mean())


def _sampler(device: Device) -> TokenSampler:
    """The kernels, a toy's too."""
    if device.where.type == "cuda":
        return token_sampler_for(device)
    from engine.sampling.triton_sample import sample_tokens

    return sample_tokens


def _model(place: Place, ops: Ops) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(place.shape, Path(folder))
        return load_model(
            Path(folder), dtype=place.dtype, device=place.device.where, ops=ops,
            checkpoint=RandomCheckpoint(place.shape, config, place.device.where),
        )  # fmt: skip


def far_inputs(place: Place, *, pool_blocks: int) -> ForwardInputs:
    """On the host: the last blocks of the pool, each sequence's from high to low."""
    free = iter(range(pool_blocks - 1, pool_blocks - 1 - place.num_blocks, -1))
    chunks = []
    for number, (before, now) in enumerate(place.lengths):
        table = [next(free) for _ in range(-(-(before + now) // BLOCK_TOKENS))]
        tokens = [3 + (7 * number + n) % 500 for n in range(now)]
        chunks.append(_chunk(number, tokens, before, table))
    return forward_inputs(chunks, block_tokens=BLOCK_TOKENS)


def _on(device: Device, inputs: ForwardInputs) -> ForwardInputs:
    made: dict[str, Any] = {one.name: getattr(inputs, one.name) for one in fields(inputs)}
    moved: dict[str, Any] = {
        name: value.to(device.where) if isinstance(value, Tensor) else value
        for name, value in made.items()
    }
    return replace(inputs, **moved)


def _kernels(place: Place, dtype: torch.dtype) -> Ops:
    """A toy's run by Triton's interpreter."""
    if place.device.where.type == "cuda":
        return ops_for(place.device, dtype=dtype)
    from engine.ops.triton.ops import TritonOps

    return TritonOps(io_dtype=dtype)


def _chunk(number: int, tokens: Sequence[int], start: int, table: Sequence[int]) -> Chunk:
    return Chunk(
        sequence=SequenceId(str(number)), token_ids=tokens, start=start, block_table=table,
        sampling=Sampling(seed=0, max_tokens=1, temperature=0.0), prompt_ids=(), outputs=(),
    )  # fmt: skip


def _place(asked: argparse.Namespace) -> Place:
    if asked.toy:
        from support.host_device import HostDevice

        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
        shape = replace(TOY, context=2_048, layers=1)
        return Place(
            device=HostDevice(), shape=shape, pool_bytes=2 << 20, lengths=TOY_LENGTHS,
            num_rows=TOY_ROWS,
        )  # fmt: skip
    device = open_device("cuda")
    assert device is not None
    shape = replace(LLAMA_8B, layers=2)
    return Place(device=device, shape=shape, pool_bytes=int(asked.pool_gib * (1 << 30)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a tiny shape on the host")
    parser.add_argument("--pool-gib", type=float, default=1.0)
    parser.add_argument("--name", default="forward", help="of the rows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
