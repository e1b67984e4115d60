"""GPT-OSS with MXFP4 experts against transformers with the equal experts in floats."""

# Shapes: T tokens, V vocabulary.

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forwards import pool_for, split_logits
from support.reference import reference
from torch import Tensor

from engine.checkpoint.load import load_model
from engine.checkpoint.quant.mxfp4 import dequantise
from engine.models.model import Model
from tools.make_checkpoint import Shape, make_checkpoint

SHAPES = {
    "few": Shape(
        family="gpt_oss", head_dim=16, window=9, bias=True, hidden=64, mlp=96, expert_form="mxfp4"
    ),
    "many": Shape(
        family="gpt_oss", head_dim=32, kv_heads=1, hidden=96, mlp=32, layers=3, num_experts=8,
        experts_per_token=4, dtype="bfloat16", expert_form="mxfp4", shard_bytes=200_000,
    ),
}  # fmt: skip
TOKEN_IDS = torch.randint(512, (30,), generator=torch.Generator().manual_seed(5))


def tensors(path: Path) -> dict[str, Tensor]:
    return {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}


def in_floats(path: Path, shape: Shape, out: Path) -> None:
    """The same checkpoint, its experts as transformers unpacks them."""
    unpack: Any = importlib.import_module("transformers.integrations.mxfp4")
    make_checkpoint(out, Shape(**vars(shape) | {"expert_form": "stacked", "shard_bytes": None}))
    plain = tensors(path)
    for name in [name for name in plain if name.endswith("_blocks")]:
        blocks, scales = plain.pop(name), plain.pop(name.replace("_blocks", "_scales"))
        weight = unpack.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        plain[name.removesuffix("_blocks")] = weight.contiguous()
    save_file(plain, out / "model.safetensors", {"format": "pt"})


def logits(model: Model) -> Tensor:
    pool = pool_for(model, num_blocks=64)
    return split_logits(model, pool, TOKEN_IDS.tolist(), sizes=[20, 1, 9], first_block=63)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_mxfp4_experts_equal_those_of_transformers(
    tmp_path: Path, name: str, native: bool
) -> None:
    make_checkpoint(tmp_path / "mxfp4", SHAPES[name])
    in_floats(tmp_path / "mxfp4", SHAPES[name], tmp_path / "floats")
    hf = reference(tmp_path / "floats")
    with torch.inference_mode():
        expected_TV = hf(TOKEN_IDS[None]).logits[0]
    got_TV = logits(load_model(tmp_path / "mxfp4", dtype="float32", native=native))
    assert (got_TV - expected_TV).abs().max() < 1e-4 * expected_TV.abs().max()


def test_mxfp4_experts_are_exact_in_bfloat16(tmp_path: Path) -> None:
    """So the two checkpoints are one model, to the bit."""
    make_checkpoint(tmp_path / "mxfp4", SHAPES["many"])
    in_floats(tmp_path / "mxfp4", SHAPES["many"], tmp_path / "floats")
    got, expected = (
        logits(load_model(tmp_path / name, dtype="bfloat16", native=False))
        for name in ("mxfp4", "floats")
    )
    assert torch.equal(got, expected)


def test_blocks_are_unpacked_as_transformers_unpacks_them() -> None:
    unpack: Any = importlib.import_module("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (2, 5, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 150, (2, 5, 3), generator=generator, dtype=torch.uint8)
    expected = unpack.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    for expert in range(2):
        assert torch.equal(dequantise(blocks[expert], scales[expert]), expected[expert].T)
