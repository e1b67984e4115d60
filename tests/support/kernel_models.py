"""Runs whole tiny models through the Triton kernels, by Triton's interpreter, beside torch.

    TRITON_INTERPRET=1 python -m support.kernel_models CHECKPOINT ...

Started by `tests/kernels/test_engine_kernels.py`: prefill in chunks, decode and a ragged batch of
both, in pools whose unwritten slots hold NaN.
"""

# Shapes: T tokens, V vocabulary.

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from support.forwards import chunk, logits, pool_for
from torch import Tensor

from engine.batch import Chunk
from engine.checkpoint.load import load_model
from engine.models.model import Model
from engine.ops.contract import Ops
from engine.ops.torch_ops import TorchOps
from engine.ops.triton.ops import TritonOps

TOKENS = [5, 9, 200, 31, 77, 8, 120, 44, 301, 2, 6, 90, 91, 17, 18, 3, 400, 401]


def model_with(path: Path, ops: Ops) -> Model:
    with patch("engine.checkpoint.load.choose_ops", lambda **_: ops):
        return load_model(path, dtype="float32")


def steps(num_groups: int) -> Sequence[Sequence[Chunk]]:
    """One sequence in chunks with another that joins, then both decode, a third beside them."""

    def part(sequence: str, begin: int, end: int, first_block: int) -> Chunk:
        table = list(range(first_block, first_block + 3 * num_groups))
        return chunk(TOKENS[begin:end], start=begin, table=table, sequence=sequence)

    far, farther = 3 * num_groups, 6 * num_groups
    return (
        [part("a", 0, 7, 0)],
        [part("b", 0, 9, far), part("a", 7, 16, 0)],
        [part("a", 16, 17, 0), part("b", 9, 10, far)],
        [part("c", 0, 3, farther), part("a", 17, 18, 0), part("b", 10, 11, far)],
    )


def run(model: Model) -> list[Tensor]:
    pool = pool_for(model, num_blocks=9 * len(model.config.kv_groups))
    return [logits(model, pool, step) for step in steps(len(model.config.kv_groups))]


def main() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.set_num_threads(1)
    for path in map(Path, sys.argv[1:]):
        got = run(model_with(path, TritonOps(io_dtype=torch.float32)))
        expected = run(model_with(path, TorchOps(io_dtype=torch.float32)))
        for mine, theirs in zip(got, expected, strict=True):
            assert not theirs.isnan().any()
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=2e-4)


if __name__ == "__main__":
    main()
