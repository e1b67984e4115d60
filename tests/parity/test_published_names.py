"""Tensors that are not just those of the model: found and passed over as transformers does it."""

# Shapes: T tokens, V vocabulary.

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.family_shapes import SHAPES
from support.forwards import pool_for, split_logits
from support.reference import reference
from torch import Tensor

from engine.checkpoint.load import load_model
from engine.models.model import DTYPES, Dtype
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape, make_checkpoint

TOLERANCE = 1e-4
TOKEN_IDS = torch.randint(300, (16,), generator=torch.Generator().manual_seed(5))
BODY, HEAD, EMBEDDING = "model.", "lm_head.weight", "model.embed_tokens.weight"
SMALL = Shape(hidden=32, heads=2, kv_heads=1, mlp=48)
TIED = replace(SMALL, tied=True)
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], Mapping[str, Tensor]]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix(BODY): tensor for name, tensor in tensors.items()}


def body_alone(tensors: Tensors) -> Tensors:
    return without_prefix({name: one for name, one in tensors.items() if name != HEAD})


def prefix_on_some(tensors: Tensors) -> Tensors:
    return {
        name if index % 2 else name.removeprefix(BODY): tensor
        for index, (name, tensor) in enumerate(tensors.items())
    }


def prefix_twice(tensors: Tensors) -> Tensors:
    return {BODY + name: tensor for name, tensor in tensors.items()}


def layers_beyond(tensors: Tensors) -> Tensors:
    last = {name: one for name, one in tensors.items() if name.startswith("model.layers.1.")}
    more = {name.replace(".1.", ".2.", 1): one.clone() for name, one in last.items()}
    return tensors | more | {"model.layers.3.mtp.weight": noise(4, 4)}


def scales(tensors: Tensors) -> Tensors:
    names = (f"model.layers.{i}.self_attn.{k}_scale" for i in range(2) for k in "kv")
    return tensors | {name: torch.tensor(0.5) for name in names}


def old_buffers(tensors: Tensors) -> Tensors:
    return tensors | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": noise(8),
        "model.rotary_emb.inv_freq": noise(8),
    }


def biases_that_nobody_reads(tensors: Tensors) -> Tensors:
    return tensors | {"model.layers.0.self_attn.q_proj.bias": noise(32)}


def head_as_well(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: tensors[EMBEDDING].clone()}


def another_head(tensors: Tensors) -> Tensors:
    return tensors | {HEAD: noise(*tensors[EMBEDDING].shape)}


def head_only(tensors: Tensors) -> Tensors:
    tensors = dict(tensors)
    return {HEAD: tensors.pop(EMBEDDING)} | tensors


def head_in_the_body(tensors: Tensors) -> Tensors:
    tensors = dict(tensors)
    return {BODY + HEAD: tensors.pop(HEAD)} | tensors


def body_and_head_only(tensors: Tensors) -> Tensors:
    return without_prefix(head_only(tensors))


CASES: list[tuple[Shape, Change]] = [
    *((SMALL, change) for change in (
        without_prefix, prefix_on_some, prefix_twice, layers_beyond, scales, old_buffers,
        biases_that_nobody_reads, head_in_the_body,
    )),
    *((TIED, change) for change in (
        body_alone, head_as_well, another_head, head_only, body_and_head_only,
    )),
    (SHAPES["mixtral"], without_prefix),
    (SHAPES["qwen2-moe"], without_prefix),
    (SHAPES["gemma2"], body_alone),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "change"), CASES, ids=[f"{shape.family}-{one.__name__}" for shape, one in CASES]
)
def test_tensors_are_found_where_transformers_finds_them(
    tmp_path: Path, shape: Shape, change: Change
) -> None:
    make_checkpoint(tmp_path, shape)
    file = tmp_path / "model.safetensors"
    changed = {name: one.contiguous() for name, one in change(load_file(file)).items()}
    save_file(changed, file, metadata={"format": "pt"})
    assert error(tmp_path) < TOLERANCE


def error(path: Path) -> float:
    """Relative to transformers' largest logit."""
    with torch.inference_mode():
        expected_TV: Tensor = reference(path)(TOKEN_IDS[None]).logits[0]
    got_TV = logits(path)
    return float((got_TV - expected_TV).abs().max() / expected_TV.abs().max())


def logits(path: Path, *, dtype: Dtype = "float32") -> Tensor:
    model = load_model(path, dtype=dtype, native=False)
    pool = pool_for(model, num_blocks=64)
    return split_logits(model, pool, TOKEN_IDS.tolist(), sizes=[16], first_block=60)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A single file beside shards of another model and their index."""
    make_checkpoint(tmp_path, replace(SMALL, seed=2, shard_bytes=20_000))
    make_checkpoint(tmp_path, SMALL)
    assert (tmp_path / "model.safetensors.index.json").exists()
    return tmp_path


def test_a_single_file_goes_before_an_index_beside_it(
    stale: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert error(stale) < TOLERANCE
    told = [one for one in caplog.records if one.message == "index of shards ignored"]
    assert len(told) == 1
    (stale / "model.safetensors").unlink()
    assert error(stale) < TOLERANCE


def test_weights_that_config_json_names_go_before_both(stale: Path) -> None:
    (stale / "model.safetensors").rename(stale / "other.safetensors")
    make_checkpoint(stale, replace(SMALL, seed=3))
    config = json.loads((stale / "config.json").read_text())
    named = config | {"transformers_weights": "other.safetensors"}
    (stale / "config.json").write_text(json.dumps(named))
    assert error(stale) < TOLERANCE
    (stale / "config.json").write_text(json.dumps(config))
    assert error(stale) < TOLERANCE


def test_a_tensor_that_is_stored_by_two_names_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SMALL)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"norm.weight": noise(32)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight are both model\.norm\.weight"):
        load_model(tmp_path, dtype="float32", native=False)


def test_what_is_not_used_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint(tmp_path, SMALL)
    file = tmp_path / "model.safetensors"
    tensors = old_buffers(scales(load_file(file)))
    save_file(dict(tensors), file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path, dtype="float32", native=False)
    (told,) = (vars(record) for record in caplog.records)
    assert (told["message"], told["count"]) == ("tensors ignored", 4)
    assert "model.layers.0.self_attn.k_scale" in told["tensors"]


def test_a_head_that_is_neither_stored_nor_tied_is_missing(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SMALL)
    file = tmp_path / "model.safetensors"
    save_file(body_alone(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
        load_model(tmp_path, dtype="float32", native=False)


def test_a_model_in_float16_is_nearer_than_in_bfloat16(tmp_path: Path) -> None:
    """Its weights are float16: nothing is lost in them, and of its steps eight times less."""
    make_checkpoint(tmp_path, replace(SHAPES["llama-llama3-rope"], dtype="float16"))
    exact = logits(tmp_path)
    errors = {
        dtype: float((logits(tmp_path, dtype=dtype) - exact).abs().max() / exact.abs().max())
        for dtype in DTYPES
    }
    assert errors["float16"] < 2e-3
    assert errors["float16"] < errors["bfloat16"] / 4
