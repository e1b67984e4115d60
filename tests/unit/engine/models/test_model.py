"""A forward is a fixed list of launches: it asks no tensor for a value, so a graph can hold it."""

# Shapes: T tokens, H query heads, D head dim, J experts of a token.

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_shapes import SHAPES
from support.forwards import chunk, pool_for
from torch import Tensor

from engine.checkpoint import load as module
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.ops.contract import Activation, Experts, ExpertWeights, HeadShape
from engine.ops.inputs import ForwardInputs, forward_inputs
from engine.ops.torch_ops import TorchOps
from tools.make_checkpoint import make_checkpoint

META = torch.device("meta")
"""Its tensors have no values: whoever asks for one, or mixes in a CPU tensor, raises."""


class Launches(TorchOps):
    """The twins that look at values, replaced by ones that know shapes only, as kernels do."""

    def attend(self, qkv: Tensor, heads: HeadShape, pool: KvPool, inputs: ForwardInputs) -> Tensor:
        return qkv[:, : heads.num_heads * heads.head_dim]

    def experts(  # type: ignore[override]
        self, weights: Iterable[ExpertWeights], *, num_experts: int, activation: Activation
    ) -> Experts:
        assert all(one.down_KF.device == META for one in weights)

        def answer(x_TK: Tensor, ids_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
            assert ids_TJ.dtype == torch.int64 and weights_TJ.dtype == torch.float32
            return x_TK * weights_TJ.sum(1, keepdim=True).to(x_TK.dtype)

        return answer


def on_meta(inputs: ForwardInputs) -> ForwardInputs:
    moved: Any = {field.name: getattr(inputs, field.name).to(META) for field in fields(inputs)}
    return replace(inputs, **moved)


@pytest.mark.parametrize("name", SHAPES)
def test_a_forward_stays_on_its_device_and_asks_for_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_checkpoint(tmp_path, SHAPES[name])
    monkeypatch.setattr(module, "choose_ops", lambda **_: Launches(io_dtype=torch.bfloat16))
    model = load_model(tmp_path, dtype="bfloat16", device=META)
    pool = pool_for(model, num_blocks=32)
    pool.tensor = pool.tensor.to(META)
    groups = pool.layout.num_groups
    chunks = [
        chunk([1, 2, 3], table=range(groups), sequence="a"),
        chunk([4], start=7, table=range(groups), sequence="b"),
    ]
    inputs = on_meta(forward_inputs(chunks, block_tokens=8, num_groups=groups))
    got = model.forward(inputs, pool)
    assert (got.shape, got.device, got.dtype) == ((2, SHAPES[name].vocab), META, torch.float32)
    none = replace(inputs, rows_R=inputs.rows_R[:0])
    assert model.forward(none, pool).shape == (0, SHAPES[name].vocab)
