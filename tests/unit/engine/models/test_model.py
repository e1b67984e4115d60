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
from engine.checkpoint.loader import Loader
from engine.checkpoint.safetensors import Checkpoint
from engine.kvcache.pool import KvPool
from engine.models.config import read_config
from engine.models.model import Model
from engine.ops.contract import Activation, Experts, ExpertWeights, HeadShape
from engine.ops.inputs import ForwardInputs, forward_inputs
from engine.ops.torch_ops import TorchOps
from tools.make_checkpoint import Shape, make_checkpoint

DYNAMIC = Shape(rope={"rope_type": "dynamic", "factor": 4.0})
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
    tensors: Any = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(inputs, **{k: v.to(META) for k, v in tensors.items() if v is not None})


@pytest.mark.parametrize("shape", [*SHAPES.values(), DYNAMIC], ids=[*SHAPES, "dynamic-rope"])
def test_a_forward_stays_on_its_device_and_asks_for_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    make_checkpoint(tmp_path, shape)
    monkeypatch.setattr(module, "choose_ops", lambda **_: Launches(io_dtype=torch.bfloat16))
    model = load_model(tmp_path, dtype="bfloat16", device=META)
    pool = pool_for(model, num_blocks=32)
    pool.tensor = pool.tensor.to(META)
    groups = pool.layout.num_groups
    chunks = [
        chunk([1, 2, 3], table=range(groups), sequence="a"),
        chunk([4], start=7, table=range(groups), sequence="b"),
    ]
    reaches = model.takes_reaches
    inputs = on_meta(forward_inputs(chunks, block_tokens=8, num_groups=groups, reaches=reaches))
    got = model.forward(inputs, pool)
    assert (got.shape, got.device, got.dtype) == ((2, shape.vocab), META, torch.float32)
    none = replace(inputs, rows_R=inputs.rows_R[:0])
    assert model.forward(none, pool).shape == (0, shape.vocab)


def test_a_layer_may_mix_its_tokens_by_something_else_than_attention(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SHAPES["llama"])
    config, ops = read_config(tmp_path), TorchOps(io_dtype=torch.float32)
    cpu, asked = torch.device("cpu"), list[list[int] | None]()
    loader = Loader(
        config, Checkpoint(tmp_path), ops, dtype=torch.float32, device=cpu, progress=None
    )

    def running_sum(
        x_TK: Tensor, inputs: ForwardInputs, pool: KvPool, turns: object, rows_R: Tensor | None
    ) -> Tensor:
        asked.append(None if rows_R is None else rows_R.tolist())
        sums_TK = x_TK.cumsum(0)
        return sums_TK if rows_R is None else sums_TK[rows_R]

    parts = loader.parts()
    layers = tuple(replace(layer, mixer=running_sum) for layer in parts.layers)
    model = Model(config, ops, replace(parts, layers=layers))
    pool = pool_for(model)
    inputs = forward_inputs([chunk([1, 2, 3], table=[0])], block_tokens=8)
    logits_RV = model.forward(inputs, pool)
    assert asked == [None] * (len(layers) - 1) + [[2]]
    assert logits_RV.shape == (1, config.vocab_size) and logits_RV.isfinite().all()
    assert pool.tensor.isnan().all()  # as it was
