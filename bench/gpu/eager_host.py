"""What an eager forward costs the host, with every launch faked: no GPU is needed.

    python -m bench.gpu.eager_host [--layers 32] [--tokens 40]

Triton compiles for an H200 and believes that it launches; a linear makes its result's memory and
computes nothing. What is left is Python, torch's allocations (of host memory: cheaper than a
GPU's) and the little that torch computes itself, of a toy width. Milliseconds of CPU time, the
least of many forwards: others on the machine only add. Not what cuBLAS takes to launch.
"""

# Shapes: T tokens, K features in, N features out.

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.engine_side import GREEDY
from bench.gpu.shapes import write_config
from bench.gpu.weights import RandomCheckpoint
from engine.batch import Chunk, SequenceId
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.inputs import ForwardInputs, forward_inputs, with_work
from tools.make_checkpoint import Shape

BLOCK_TOKENS = 16
H200 = 90
SHARED_BYTES = 227 << 10
ROUNDS = 60
DECODES = 7


class NoGpu:
    """A Triton driver of an H200 that does nothing: what is launched is only counted."""

    def __init__(self) -> None:
        self.launched = 0
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 0, 0, 1024),
            unload_module=lambda *_: None,
            get_device_properties=lambda _: {"max_shared_mem": SHARED_BYTES},
        )

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return self.count_launch

    def count_launch(self, *_: object) -> None:
        self.launched += 1

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", H200, 32)


def unmultiplied(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0])


@contextmanager
def faked() -> Iterator[NoGpu]:
    from triton.runtime import driver

    fake = NoGpu()
    with patch.object(driver, "_active", fake), patch.object(F, "linear", unmultiplied):
        yield fake


def toy(layers: int) -> Shape:
    """Few bytes a row, with the heads' ratio of an 8B: the host's work is that of any width."""
    return Shape(
        dtype="bfloat16", hidden=256, layers=layers, heads=8, kv_heads=2, head_dim=32, mlp=512,
        vocab=1_024, context=2_048,
    )  # fmt: skip


def mixed(num_tokens: int) -> ForwardInputs:
    """A step of some decodes and one prompt chunk."""
    tokens = [[1]] * DECODES + [[1] * (num_tokens - DECODES)]
    return forward_inputs(
        [
            Chunk(
                sequence=SequenceId(str(number)), token_ids=ids, start=0, sampling=GREEDY,
                block_table=range(64 * number, 64 * (number + 1)), prompt_ids=(), outputs=(),
            )
            for number, ids in enumerate(tokens)
        ],
        block_tokens=BLOCK_TOKENS,
    )  # fmt: skip


def loaded(shape: Shape, directory: Path) -> tuple[Model, KvPool]:
    from engine.ops.triton.ops import TritonOps

    config = write_config(shape, directory)
    host = torch.device("cpu")
    model = load_model(
        directory, dtype="bfloat16", ops=TritonOps(io_dtype=torch.bfloat16),
        checkpoint=RandomCheckpoint(shape, config, host),
    )  # fmt: skip
    (layout,) = model.config.kv_layouts(block_tokens=BLOCK_TOKENS, dtype="bfloat16")
    return model, KvPool(layout, 64 * (DECODES + 1))


def least_ms(work: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    """CPU milliseconds of this thread."""
    work()
    taken_ns = []
    for _ in range(rounds):
        began_ns = time.thread_time_ns()
        work()
        taken_ns.append(time.thread_time_ns() - began_ns)
    return min(taken_ns) / 1e6


def measure(*, layers: int, num_tokens: int, rounds: int = ROUNDS) -> dict[str, float]:
    """`forward_ms`, `launches` of a forward, and `attention_ms`: the part of it that attends."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, faked() as gpu:
        model, pool = loaded(toy(layers), Path(directory))
        windows = [group.window for group in model.config.kv_groups]
        inputs = with_work(mixed(num_tokens), windows)
        forward_ms = least_ms(lambda: model.forward(inputs, pool), rounds=rounds)
        before = gpu.launched
        model.forward(inputs, pool)
        launches = gpu.launched - before
        with patch.object(type(model.ops), "attend", unattended):
            rest_ms = least_ms(lambda: model.forward(inputs, pool), rounds=rounds)
    return {
        "forward_ms": forward_ms, "attention_ms": forward_ms - rest_ms, "launches": launches,
    }  # fmt: skip


def unattended(self: object, qkv: Tensor, heads: Any, *_: object) -> Tensor:
    return qkv.new_empty(len(qkv), heads.num_heads * heads.head_dim)


def main() -> None:
    parser = argparse.ArgumentParser(description="An eager forward's host time, launches faked.")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=40)
    asked = parser.parse_args()
    for name, value in measure(layers=asked.layers, num_tokens=asked.tokens).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
