"""A model of two layers by the device's kernels and by torch on the same device: equal enough?

    python -m bench.gpu.forward [--toy] [--pool-gib N] [--name NAME]

Its blocks are the last ones of a pool of N GiB, further from its beginning than 32 bits count. Rows
are sampled with filters, beside the CPU's sampler. Tells a row each; ends with 1 where one is not.
"""

# Shapes: T tokens, R rows, V vocabulary.

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

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
from engine.ops.inputs import ForwardInputs, forward_inputs
from engine.ops.torch_ops import TorchOps
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import open_device, ops_for, token_sampler_for
from engine.sampling.rows import RowRules, sample_on_host
from protocol.messages import Sampling
from tools.make_checkpoint import Shape

BLOCK_TOKENS = 16
BOUND = 3e-2
"""Of the largest logit: what bfloat16 in other orders comes to over two layers."""
LENGTHS = ((0, 70), (63, 1), (200, 1), (20, 45))
"""Sequences as (tokens before, tokens of this step)."""
NUM_ROWS = 64
LEAST_EQUAL = 0.95
"""Of sampled tokens: where two scores differ in the last bits either may win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    device: Device
    shape: Shape
    pool_bytes: int

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
    kernels = _model(place, ops_for(place.device, dtype=dtype))
    (layout,) = kernels.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype=place.dtype)
    pool = KvPool(layout, place.pool_bytes // layout.block_bytes, device=place.device.where)
    inputs = _inputs(place, num_blocks=pool.tensor.shape[0])
    pool.tensor[-_num_blocks() :].normal_()
    before = pool.tensor[-_num_blocks() :].clone()
    got = kernels.forward(inputs, pool).float()
    pool.tensor[-_num_blocks() :] = before
    twin = _model(place, TorchOps(io_dtype=dtype)).forward(inputs, pool).float()
    assert bool(got.isfinite().all()), "a logit of the kernels is no number"
    return got, twin


def equal_tokens(place: Place, logits_RV: Tensor) -> float:
    """The share of rows whose token is that of the CPU's sampler, with top_k and top_p."""
    rows_RV = logits_RV[torch.arange(NUM_ROWS) % len(logits_RV)].contiguous()

    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((NUM_ROWS,), value, dtype=dtype, device=rows_RV.device)

    rules = RowRules(
        temperature_R=column(0.7, torch.float32), top_k_R=column(50, torch.int32),
        top_p_R=column(0.9, torch.float32), min_p_R=column(0.0, torch.float32),
        seed_R=column(1, torch.int64),
        position_R=torch.arange(NUM_ROWS, dtype=torch.int64, device=rows_RV.device),
    )  # fmt: skip
    got_R = token_sampler_for(place.device)(rows_RV, rules).cpu()
    on_host = {one.name: getattr(rules, one.name).cpu() for one in fields(rules)}
    return float((got_R == sample_on_host(rows_RV.cpu(), RowRules(**on_host))).float().mean())


def _model(place: Place, ops: Ops) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(place.shape, Path(folder))
        return load_model(
            Path(folder), dtype=place.dtype, device=place.device.where, ops=ops,
            checkpoint=RandomCheckpoint(place.shape, config, place.device.where),
        )  # fmt: skip


def _num_blocks() -> int:
    return sum(-(-(before + now) // BLOCK_TOKENS) for before, now in LENGTHS)


def _inputs(place: Place, *, num_blocks: int) -> ForwardInputs:
    """The last blocks of the pool, each sequence's from high to low."""
    free = iter(range(num_blocks - 1, num_blocks - 1 - _num_blocks(), -1))
    chunks = []
    for number, (before, now) in enumerate(LENGTHS):
        table = [next(free) for _ in range(-(-(before + now) // BLOCK_TOKENS))]
        tokens = [3 + (7 * number + n) % 500 for n in range(now)]
        chunks.append(_chunk(number, tokens, before, table))
    made = forward_inputs(chunks, block_tokens=BLOCK_TOKENS)
    tensors = {one.name: getattr(made, one.name) for one in fields(made)}
    moved = {n: v.to(place.device.where) for n, v in tensors.items() if isinstance(v, Tensor)}
    return replace(made, **moved)


def _chunk(number: int, tokens: Sequence[int], start: int, table: Sequence[int]) -> Chunk:
    return Chunk(
        sequence=SequenceId(str(number)), token_ids=tokens, start=start, block_table=table,
        sampling=Sampling(seed=0, max_tokens=1, temperature=0.0), prompt_ids=(), outputs=(),
    )  # fmt: skip


def _place(asked: argparse.Namespace) -> Place:
    if asked.toy:
        from support.host_device import HostDevice

        return Place(device=HostDevice(), shape=TOY, pool_bytes=1 << 20)
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
