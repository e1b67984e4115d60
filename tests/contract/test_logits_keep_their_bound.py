"""How far logits of one token lie apart in two orders of summation: within the bound that
docs/decisions/0039-equality-on-gpus-has-a-bound-or-a-mode.md states.

On a GPU by the kernels and cuBLAS, in bfloat16; elsewhere by torch's linears, in the same steps.
"""

# Shapes: T tokens, R rows, V vocabulary.

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forwards import chunk, pool_for
from support.gpu import why_no_gpu
from support.host_device import HostDevice
from torch import Tensor

from engine.batch import Chunk
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.ops.inputs import ForwardInputs, forward_inputs, with_work
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import ops_for, sum_in_float32
from tools.make_checkpoint import Shape, make_checkpoint

BF16, F32 = torch.bfloat16, torch.float32
STEPS = 5
"""Of a layer: four linears and an attention."""
LENGTH, BLOCK_TOKENS, NEIGHBOURS = 40, 8, 31
TABLE_BLOCKS = LENGTH // BLOCK_TOKENS
SHAPES = (
    Shape(dtype="bfloat16", hidden=64, layers=1, heads=4, kv_heads=2, mlp=160, seed=1),
    Shape(dtype="bfloat16", hidden=256, layers=2, heads=4, kv_heads=1, mlp=512, seed=2),
    Shape(dtype="bfloat16", hidden=96, layers=9, heads=6, kv_heads=3, mlp=224, seed=3),
    Shape(dtype="bfloat16", family="qwen3", hidden=128, layers=4, heads=8, kv_heads=4, seed=4),
)


def bound(num_layers: int) -> float:
    """Of the spread of the logits: a rounding to 8 bits a step, which add up like a random walk."""
    return 2.0**-8 * math.sqrt(STEPS * num_layers)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread would only wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "host":
        return HostDevice()
    if why := why_no_gpu():
        pytest.skip(why)
    from engine.runner.gpu.cuda import CudaDevice

    sum_in_float32()
    return CudaDevice(0)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            shape, marks=[pytest.mark.long] if shape.layers > 2 else [],
            id=f"{shape.family}-{shape.layers}",
        )
        for shape in SHAPES
    ],
)  # fmt: skip
def test_logits_in_bfloat16_differ_between_batches_and_from_float32_within_the_bound(
    device: Device, shape: Shape, tmp_path: Path
) -> None:
    """The last row of a prompt, computed at once; as a decode after chunks of several sizes; and
    so again among 31 neighbours. Then the same weights in float32."""
    make_checkpoint(tmp_path, shape)
    device.bind()
    ops = ops_for(device, dtype=BF16)
    model = load_model(tmp_path, dtype="bfloat16", ops=ops, device=device.where)
    widened = load_model(tmp_path, dtype="float32", native=False)
    whole_V, *others_V = rows(model)
    for other_V in others_V:
        assert apart(other_V, whole_V) <= bound(shape.layers)
    exact_V, *others_V = rows(widened)
    assert all(apart(other_V, exact_V) < 4e-6 for other_V in others_V)
    assert 0 < apart(whole_V, exact_V) <= bound(shape.layers)


def apart(got_V: Tensor, expected_V: Tensor) -> float:
    """The root mean square of the differences, in spreads."""
    return float((got_V - expected_V).square().mean().sqrt() / expected_V.std())


def rows(model: Model) -> list[Tensor]:
    """Logits [V] of the prompt's last token, on the host, in each way of computing them."""
    prompt = torch.randint(0, 200, (LENGTH,), generator=torch.Generator().manual_seed(5)).tolist()
    pool = pool_for(model, block_tokens=BLOCK_TOKENS, num_blocks=TABLE_BLOCKS * (NEIGHBOURS + 1))
    pool = KvPool(pool.layout, pool.num_blocks, device=model.device)
    found = [last_row(model, pool, [part(prompt, 0, LENGTH)])]
    for begin, end in ((0, 7), (7, 25), (25, LENGTH - 1)):
        last_row(model, pool, [part(prompt, begin, end)])
    found.append(last_row(model, pool, [part(prompt, LENGTH - 1, LENGTH)]))
    # The neighbours' contexts are whatever the pool holds: zeros.
    beside = [part(prompt, LENGTH - 1 - n, LENGTH - n, place=n + 1) for n in range(NEIGHBOURS)]
    found.append(last_row(model, pool, [*beside, part(prompt, LENGTH - 1, LENGTH)]))
    return found


def part(prompt: list[int], begin: int, end: int, *, place: int = 0) -> Chunk:
    table = range(place * TABLE_BLOCKS, (place + 1) * TABLE_BLOCKS)
    return chunk(prompt[begin:end], start=begin, table=table, sequence=str(place))


def last_row(model: Model, pool: KvPool, chunks: list[Chunk]) -> Tensor:
    inputs = forward_inputs(chunks, block_tokens=BLOCK_TOKENS)
    inputs = with_work(inputs, [group.window for group in model.config.kv_groups])
    return model.forward(there(inputs, model.device), pool)[-1].float().cpu()


def there(inputs: ForwardInputs, where: torch.device) -> ForwardInputs:
    moved: dict[str, Any] = {
        field.name: value.to(where)
        for field in fields(inputs)
        if isinstance(value := getattr(inputs, field.name), Tensor)
    }
    return replace(inputs, **moved)
