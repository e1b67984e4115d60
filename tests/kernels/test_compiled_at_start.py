"""No request waits for a compiler: the steps that are run at the start launch every kernel that any
step within the limits does."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from support.forwards import chunk
from support.launch_classes import launch_classes, meta_model

from engine.batch import Chunk
from engine.limits import EngineLimits
from engine.runner.gpu.pool_size import largest_step, wide_steps
from tools.make_checkpoint import Shape, make_checkpoint

LIMITS = EngineLimits(max_running=64, max_waiting=8, token_budget=512, max_context_tokens=4096)


def steps() -> Iterator[list[Chunk]]:
    """Of few and many sequences that decode, or whose prompts are cached but for a token, beside
    short and long chunks, at short and long contexts."""
    for num_decodes, lengths, context in product(
        (0, 1, 2, 33, 60), ((), (5, 300), (16, 1)), (16, 4000)
    ):
        if not num_decodes and not lengths:
            continue
        table = range(-(-(context + 300) // 16))
        decodes = [chunk([1], start=context, table=table) for _ in range(num_decodes)]
        yield decodes + [chunk([1] * n, start=context - 16, table=table) for n in lengths]


@pytest.mark.parametrize(
    "shape", [Shape(family="qwen3", layers=1, heads=8, kv_heads=8, context=4096)]
)
def test_every_kernel_of_any_step_is_compiled_at_the_start(shape: Shape, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, shape)
    model = meta_model(tmp_path)
    (layout,) = model.config.kv_layouts(block_tokens=16, dtype="bfloat16")
    at_start = launch_classes(model, [largest_step(layout, LIMITS), *wide_steps(layout, LIMITS)])
    for step in steps():
        later = launch_classes(model, [step])
        missing = sorted(str(one) for one in later - at_start)
        lengths = [len(one.token_ids) for one in step]
        assert not missing, f"{lengths} from {step[0].start} on: {missing}"
