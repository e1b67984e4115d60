"""How tokens choose experts, and how experts are read whatever form they are stored in."""

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint.load import load_model
from engine.checkpoint.quant.mxfp4 import dequantise
from engine.checkpoint.safetensors import Checkpoint
from engine.models.route import route
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape, make_checkpoint

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 3.5, -2.0, 0.0]])


def test_a_softmax_before_the_choice_leaves_weight_to_those_not_chosen() -> None:
    ids, weights = route(LOGITS, per_token=2, softmax="before", renormalise=False)
    assert ids.tolist() == [[1, 2], [1, 0]]
    assert ids.dtype == torch.int64
    assert torch.equal(weights, LOGITS.softmax(-1).gather(1, ids))


def test_renormalised_weights_sum_to_one() -> None:
    _, weights = route(LOGITS, per_token=2, softmax="before", renormalise=True)
    assert torch.allclose(weights.sum(-1), torch.ones(2))
    assert torch.allclose(weights[0, 0] / weights[0, 1], torch.e * torch.ones(()))


def test_a_softmax_after_the_choice_is_over_the_chosen_alone() -> None:
    ids, weights = route(LOGITS, per_token=3, softmax="after", renormalise=False)
    assert torch.equal(weights, LOGITS.gather(1, ids).softmax(-1))


def test_routing_is_in_float32_whatever_the_logits_are() -> None:
    _, weights = route(LOGITS.bfloat16(), per_token=1, softmax="before", renormalise=False)
    assert weights.dtype == torch.float32


def test_mxfp4_is_sixteen_values_times_a_power_of_two() -> None:
    """OCP Microscaling Formats v1.0: e2m1 has the sign first; the low half of a byte is first."""
    blocks = torch.zeros(1, 2, 16, dtype=torch.uint8)
    blocks[0, 0, :8] = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE])
    blocks[0, 1, 0] = 0x21
    got = dequantise(blocks, torch.tensor([[127, 125]], dtype=torch.uint8))
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert got.shape == (1, 64)
    assert torch.equal(got[0, :16], torch.cat((values, -values)))
    assert got[0, 32:34].tolist() == [0.125, 0.25]


def test_an_mxfp4_scale_may_be_the_smallest_or_not_a_number() -> None:
    blocks = torch.full((1, 2, 16), 0x22, dtype=torch.uint8)
    got = dequantise(blocks, torch.tensor([[0, 255]], dtype=torch.uint8))
    assert got[0, 0] == 2.0**-127
    assert got[0, 32:].isnan().all()


SHAPES = {
    "each": Shape(family="qwen2_moe"),
    "stacked": Shape(family="mixtral", expert_form="stacked"),
    "mxfp4": Shape(family="gpt_oss", head_dim=16, hidden=32, mlp=32, expert_form="mxfp4"),
}
DOWN = {
    "each": "model.layers.1.mlp.experts.2.down_proj.weight",
    "stacked": "model.layers.1.mlp.experts.down_proj",
    "mxfp4": "model.layers.1.mlp.experts.down_proj_scales",
}


def load(path: Path) -> tuple[str, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    model = load_model(path, dtype="float32", native=False, progress=lambda *at: seen.append(at))
    return model.config.revision, seen


@pytest.mark.parametrize("form", SHAPES)
def test_progress_ends_at_the_whole_whatever_the_form(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path, SHAPES[form])
    _, seen = load(tmp_path)
    assert seen == sorted(seen)
    whole = sum(stored.num_bytes for stored in Checkpoint(tmp_path).tensors.values())
    assert seen[-1][0] == seen[-1][1] == whole


@pytest.mark.parametrize("form", SHAPES)
def test_the_revision_covers_every_expert(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path, SHAPES[form])
    before, _ = load(tmp_path)
    stored = Checkpoint(tmp_path).tensors[DOWN[form]]
    raw = bytearray(stored.file.read_bytes())
    raw[stored.offset + stored.num_bytes - 1] ^= 1
    stored.file.write_bytes(raw)
    assert load(tmp_path)[0] != before


@pytest.mark.parametrize("form", SHAPES)
def test_a_missing_expert_is_named(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path, SHAPES[form])
    file = tmp_path / "model.safetensors"
    name = DOWN[form].encode()
    file.write_bytes(file.read_bytes().replace(name, name.replace(b"down", b"lost")))
    with pytest.raises(CheckpointError, match=f"tensor {DOWN[form]} is missing"):
        load(tmp_path)


def test_experts_of_floats_where_bytes_belong_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SHAPES["mxfp4"])
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"U8"', b'"I8"'))
    with pytest.raises(CheckpointError, match="is I8; supported: U8"):
        load(tmp_path)


@pytest.mark.parametrize(("key", "size"), [("hidden_size", 48), ("intermediate_size", 80)])
def test_mxfp4_experts_of_broken_blocks_are_refused(tmp_path: Path, key: str, size: int) -> None:
    make_checkpoint(tmp_path, SHAPES["mxfp4"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: size}))
    with pytest.raises(CheckpointError, match=f"{key} = {size} must be a multiple of 32"):
        load(tmp_path)


def test_stacked_floats_need_no_whole_blocks(tmp_path: Path) -> None:
    shape = Shape(family="gpt_oss", head_dim=16, hidden=48, mlp=80, expert_form="stacked")
    make_checkpoint(tmp_path, shape)
    load(tmp_path)


def test_one_row_of_a_stacked_tensor_is_read_alone(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SHAPES["stacked"])
    checkpoint, shape = Checkpoint(tmp_path), (4, 64, 128)
    whole = checkpoint.read(DOWN["stacked"], shape=shape, dtype=torch.float32)
    row = checkpoint.read(DOWN["stacked"], shape=shape, dtype=torch.float32, row=2)
    assert torch.equal(row, whole[2])
    assert row.untyped_storage().nbytes() == row.nbytes


def test_every_weight_is_put_on_the_device_it_is_loaded_for(tmp_path: Path) -> None:
    """ "meta" stands for any device that is not the CPU: an op that mixed the two would raise."""
    make_checkpoint(tmp_path, SHAPES["each"])
    model = load_model(tmp_path, dtype="bfloat16", device="meta")
    assert model.device.type == "meta"
    assert model.ops.name == "torch"
