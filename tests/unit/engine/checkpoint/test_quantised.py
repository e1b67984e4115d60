"""Quantised weights are refused by the name of their method, whichever file says it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.checkpoint.load import load_model
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape, make_checkpoint

SMALL = Shape(hidden=32, heads=2, kv_heads=1, mlp=48)
Q = "model.layers.0.self_attn.q_proj"


def packed(tensors: dict[str, Tensor]) -> None:
    """As GPTQ and AWQ: eight numbers of four bits in one, scales of their own."""
    del tensors[f"{Q}.weight"]
    tensors |= {f"{Q}.qweight": torch.zeros(4, 32, dtype=torch.int32)}
    tensors |= {f"{Q}.scales": torch.zeros(1, 32, dtype=torch.float16)}


def halved(tensors: dict[str, Tensor]) -> None:
    """As NVFP4: two numbers of four bits in a byte."""
    tensors[f"{Q}.weight"] = torch.zeros(32, 16, dtype=torch.uint8)
    tensors[f"{Q}.weight_scale"] = torch.zeros(32, 2, dtype=torch.float8_e4m3fn)


def in_fp8(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(torch.float8_e4m3fn)


def compressed(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q}.weight_packed"] = tensors.pop(f"{Q}.weight").to(torch.int32)


MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"kv_cache_quant_algo": "FP8"}}


def modelopt(algorithm: str) -> dict[str, Any]:
    return MODELOPT | {"quantization": {"quant_algo": algorithm, "group_size": 16}}


def change(path: Path, spoil: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    spoil(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("file", "said", "spoil", "named"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, packed,
         r"GPTQ by quantize_config\.json \(bits 4\)"),
        ("quant_config.json", {"w_bit": 4, "version": "GEMM"}, packed,
         r"AWQ by quant_config\.json \(w_bit 4, version GEMM\)"),
        ("hf_quant_config.json", modelopt("NVFP4"), halved, r"ModelOpt .*\(quant_algo NVFP4\)"),
        ("hf_quant_config.json", modelopt("FP8"), in_fp8, r"ModelOpt .*\(quant_algo FP8\)"),
        (None, {}, packed, "GPTQ or AWQ by the name of .*q_proj.qweight"),
        (None, {}, compressed, "compressed-tensors by the name of .*weight_packed"),
        (None, {}, halved, "FP8 or FP4 by the name of .*weight_scale"),
    ],
)  # fmt: skip
def test_the_method_is_named(
    tmp_path: Path, file: str | None, said: Mapping[str, Any],
    spoil: Callable[[dict[str, Tensor]], None], named: str,
) -> None:  # fmt: skip
    make_checkpoint(tmp_path, SMALL)
    change(tmp_path, spoil)
    if file is not None:
        (tmp_path / file).write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=f"quantised: {named}.*without quantisation"):
        load_model(tmp_path, dtype="float32", native=False)


def test_the_method_is_named_where_the_weights_have_its_name(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SMALL)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-128g.safetensors")
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4}))
    with pytest.raises(CheckpointError, match=r"quantised: GPTQ .*gptq_model-4bit-128g"):
        load_model(tmp_path, dtype="float32", native=False)


@pytest.mark.parametrize("file", ["quantize_config.json", "hf_quant_config.json"])
def test_a_method_beside_weights_that_are_floats_is_no_reason_to_refuse(
    tmp_path: Path, file: str
) -> None:
    make_checkpoint(tmp_path, SMALL)
    (tmp_path / file).write_text(json.dumps(MODELOPT))
    assert load_model(tmp_path, dtype="float32", native=False).config.num_layers == 2


def test_a_tensor_that_is_just_missing_is_told_as_that(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SMALL)
    change(tmp_path, lambda tensors: tensors.__delitem__(f"{Q}.weight"))
    with pytest.raises(CheckpointError, match=rf"tensor {Q}\.weight is missing$"):
        load_model(tmp_path, dtype="float32", native=False)


def test_an_adapter_beside_the_model_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, SMALL)
    (tmp_path / "adapter_config.json").write_text("{}")
    load_model(tmp_path, dtype="float32", native=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is an adapter beside the model"):
        load_model(tmp_path, dtype="float32", native=False)
