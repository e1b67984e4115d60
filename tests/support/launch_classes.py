"""Which compiled kernels a step launches: recorded with tensors on torch's meta device, specialised
as Triton's JIT would, without a driver."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ahead import _specialised
from triton.runtime.jit import JITFunction

from engine.batch import Chunk
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.triton.ops import TritonOps
from engine.runner.gpu.arrays import NO_FEED, StepFields, step_arrays

META = torch.device("meta")
LaunchClass = tuple[object, ...]


def meta_model(checkpoint: Path) -> Model:
    return load_model(
        checkpoint, dtype="bfloat16", ops=TritonOps(io_dtype=torch.bfloat16), device=META
    )


def launch_classes(model: Model, steps: Iterable[Sequence[Chunk]]) -> set[LaunchClass]:
    """Of all kernels that the forwards of these steps launch."""
    (layout,) = model.config.kv_layouts(block_tokens=16, dtype="bfloat16")
    pool, seen = KvPool(layout, 4, device=META), set[LaunchClass]()

    def run(kernel: Any, *args: Any, grid: object, warmup: bool, **named: Any) -> None:
        call = _specialised(kernel, args, dict(named))
        parts = (call.signature, call.constants, call.options)
        seen.add((kernel.__name__, *(tuple(sorted(part.items(), key=str)) for part in parts),
                  call.aligned))  # fmt: skip

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(JITFunction, "run", run)
        for chunks in steps:
            arrays = step_arrays(
                chunks, layout, feeds=[NO_FEED] * len(chunks),
                keeps=[0] * sum(chunk.sampling is not None for chunk in chunks),
            )  # fmt: skip
            there = {
                name: torch.from_numpy(array).to(META) for name, array in arrays.values().items()
            }
            step = StepFields(**there, work=arrays.work)
            model.forward(step.inputs(step.token_ids_T, step.tables_GSB), pool)
    return seen
