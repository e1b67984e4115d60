"""The dtype that a model runs in, by what its checkpoint has and where it runs."""

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine.checkpoint.dtype import choose_dtype, stored_dtype
from protocol.errors import SettingsError
from protocol.process.settings import WorkerSettings
from tools.make_checkpoint import Shape, make_checkpoint
from worker.serving import open_model

CONFIG = "config.json"


@pytest.mark.parametrize(
    ("asked", "stored", "model_type", "on_gpu", "expected"),
    [
        ("auto", "bfloat16", "llama", False, "bfloat16"),
        ("auto", "bfloat16", "llama", True, "bfloat16"),
        ("auto", "float16", "llama", True, "float16"),
        ("auto", "float16", "llama", False, "bfloat16"),
        ("auto", "float16", "gemma2", True, "bfloat16"),
        ("auto", "float16", "gemma3_text", True, "bfloat16"),
        ("auto", "float32", "llama", True, "bfloat16"),
        ("auto", "float32", "llama", False, "bfloat16"),
        ("auto", "float8_e4m3fn", "llama", True, "bfloat16"),
        ("auto", "", "llama", True, "bfloat16"),
        ("float32", "float16", "llama", True, "float32"),
        ("float16", "bfloat16", "llama", False, "float16"),
        ("bfloat16", "float16", "llama", True, "bfloat16"),
    ],
)
def test_auto_is_the_checkpoints_where_the_device_can(
    asked: Any, stored: str, model_type: str, on_gpu: bool, expected: str
) -> None:
    chosen = choose_dtype(asked, stored=stored, model_type=model_type, on_gpu=on_gpu)
    assert chosen.dtype == expected
    assert chosen.loses == (asked == "auto" and stored == "float16" and not on_gpu)


def test_float16_is_refused_where_its_range_is_too_small() -> None:
    with pytest.raises(SettingsError, match="dtype: float16: out of range for gemma2"):
        choose_dtype("float16", stored="bfloat16", model_type="gemma2", on_gpu=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": None, "text_config": {"torch_dtype": "float16"}}, "float16"),
        ({}, ""),
    ],
)
def test_config_json_names_the_dtype(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    assert stored_dtype(tmp_path, config) == expected


def test_most_of_the_weights_say_it_where_config_json_does_not(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(dtype="float16"))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file)
    assert stored_dtype(tmp_path, {}) == "float16"


@pytest.mark.parametrize(
    ("asked", "runs", "level"),
    [
        ("auto", "bfloat16", "WARNING"),
        ("float16", "float16", "INFO"),
        ("float32", "float32", "INFO"),
    ],
)
def test_a_worker_on_a_cpu_tells_what_it_makes_of_float16(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str, runs: str, level: str
) -> None:
    make_checkpoint(tmp_path, Shape(dtype="float16"))
    assert json.loads((tmp_path / CONFIG).read_text())["torch_dtype"] == "float16"
    settings = WorkerSettings(model=tmp_path, dtype=asked, kv_blocks=2)
    with caplog.at_level(logging.INFO):
        model = open_model("decode", settings)
    with closing(model.memory):
        assert model.assembly.layout.dtype == runs
    (told,) = (record for record in caplog.records if record.message == "dtype")
    assert (vars(told)["dtype"], told.levelname) == (runs, level)
