"""A folder that holds no checkpoint as Baton reads one is told what it holds, and what works."""

import os
from pathlib import Path

import pytest

from protocol.errors import CheckpointError
from protocol.process.model_folder import resolve_model
from protocol.text.model_files import WEIGHTS, explain_missing, missing, read_whole
from protocol.text.text_config import read_json_file, read_json_object_if_there
from protocol.text.tokenizer import Tokenizer

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5135149760\n"


@pytest.mark.parametrize(
    ("lacking", "there", "what", "remedy"),
    [
        (WEIGHTS, "config.json pytorch_model.bin", "pytorch_model.bin, a pickle",
         "M.from_pretrained('PLACE', dtype='auto').save_pretrained('PLACE')"),
        (WEIGHTS, "pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json",
         "pytorch_model-00001-of-00002.bin, a pickle", "save_pretrained"),
        (CONFIG, "README.md model.Q4_K_M.gguf", "model.Q4_K_M.gguf, of llama.cpp",
         "gguf_file='model.Q4_K_M.gguf'"),
        (WEIGHTS, "config.json model.Q4_K_M.gguf", "of llama.cpp", "safetensors instead"),
        (CONFIG, "consolidated.safetensors params.json tekken.json", "consolidated.safetensors",
         "safetensors instead"),
        (CONFIG, "consolidated.00.pth params.json", "consolidated.00.pth", "instead"),
        (WEIGHTS, "config.json original/consolidated.00.pth", "consolidated.00.pth", "instead"),
        (WEIGHTS, "config.json consolidated.safetensors", "of their own form", "instead"),
        (CONFIG, "adapter_config.json adapter_model.safetensors", "PEFT adapter",
         "AutoPeftModelForCausalLM"),
        (WEIGHTS, "config.json adapter_config.json adapter_model.bin", "PEFT adapter", "merge"),
        (CONFIG, "model.onnx", "ONNX", "instead"),
        (WEIGHTS, "config.json onnx/model.onnx", "onnx/model.onnx, an ONNX graph", "instead"),
        (WEIGHTS, "config.json weights.npz", "of MLX", "instead"),
        (WEIGHTS, "config.json openvino_model.xml openvino_model.bin", "OpenVINO", "instead"),
        (CONFIG, "rank0.engine", "TensorRT", "instead"),
        (WEIGHTS, "config.json tf_model.h5", "another framework", "instead"),
        (WEIGHTS, "config.json flax_model.msgpack", "another framework", "instead"),
        (WEIGHTS, "checkpoint.pt", "checkpoint.pt, of another form", "instead"),
        (WEIGHTS, "config.json model.fp16.safetensors", "the variant fp16", "variant='fp16'"),
        (WEIGHTS, "config.json model.fp16-00001-of-00002.safetensors", "the variant fp16", "fp16"),
        (WEIGHTS, "config.json model.safetensors.index.fp16.json", "the variant fp16", "fp16"),
        (WEIGHTS, "config.json model-00001-of-00002.safetensors",
         "no model.safetensors.index.json beside the shards", "hf download"),
        (WEIGHTS, "config.json model.safetensors.incomplete", "part of a download", "hf download"),
        (CONFIG, "model.safetensors.part", "a part of a download", "hf download"),
        (WEIGHTS, "config.json weights.safetensors", "weights.safetensors", f"name it {WEIGHTS}"),
        (CONFIG, "final/config.json final/model.safetensors", "a checkpoint in its folder final",
         "give PLACE/final"),
        (CONFIG, "model.safetensors tokenizer.json", "there is model.safetensors without it",
         "perhaps in the folder above, to PLACE, and give that"),
        (CONFIG, "tokenizer.json", "nor is there anything", "hf download"),
        (WEIGHTS, "config.json checkpoint-500/model.safetensors",
         "weights in its folder checkpoint-500", "to PLACE/checkpoint-500, and give that"),
        (WEIGHTS, "config.json gptq_model-4bit-128g.safetensors", "is quantised by its name",
         "not quantised"),
        (WEIGHTS, "config.json llama-w4a16.safetensors", "is quantised by its name", "not quant"),
        (WEIGHTS, "config.json", "nor is there anything", "hf download"),
        (CONFIG, "", "the folder is empty", "hf download"),
        (TOKENIZER, "config.json tokenizer.model", "tokenizer.model, of SentencePiece",
         "T.from_pretrained('PLACE').save_pretrained('PLACE')"),
        (TOKENIZER, "config.json tekken.json", "tekken.json", "mistral-common"),
        (TOKENIZER, "config.json vocab.json merges.txt", "the slow form", "T.from_pretrained"),
        (TOKENIZER, "config.json model.safetensors", "nor is there anything", "hf download"),
    ],
)  # fmt: skip
def test_what_lies_there_instead_is_named_with_its_remedy(
    lacking: str, there: str, what: str, remedy: str
) -> None:
    message = str(explain_missing(lacking, there.split(), place="PLACE"))
    assert message.startswith(f"PLACE/{lacking}: missing")
    assert what in message
    assert remedy in message
    assert "{" not in message
    assert "\n" not in message


def test_a_folder_is_looked_into_and_one_below(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_q4.onnx").write_bytes(b"")
    assert "onnx/model_q4.onnx, an ONNX graph" in str(missing(tmp_path / CONFIG))


def test_a_link_to_nothing_is_told_with_its_goal(tmp_path: Path) -> None:
    (tmp_path / CONFIG).symlink_to("../../blobs/abc")
    with pytest.raises(CheckpointError, match=r"a link to \.\./\.\./blobs/abc, which is not"):
        read_json_file(tmp_path / CONFIG)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LFS, "a Git LFS pointer, not the file: run git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"Found. Redirecting to https://cdn", "a redirect"),
    ],
)
@pytest.mark.parametrize("name", [CONFIG, TOKENIZER])
def test_a_file_that_is_something_else_is_told_what(
    tmp_path: Path, name: str, text: bytes, what: str
) -> None:
    (tmp_path / CONFIG).write_text('{"vocab_size": 8, "max_position_embeddings": 8}')
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=f"{name}: is {what}"):
        Tokenizer.load(tmp_path)


def test_broken_json_is_still_told_as_that(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"vocab_size": 8,')
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_json_file(tmp_path / CONFIG)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
        read_whole(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
        read_json_object_if_there(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
        resolve_model(tmp_path / name)


def test_a_file_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    for name in (CONFIG, TOKENIZER):
        with (tmp_path / name).open("wb") as file:
            file.truncate(10 << 30)
        with pytest.raises(CheckpointError, match=f"{name}: must have at most 64 MiB"):
            read_json_file(tmp_path / name)
    (tmp_path / CONFIG).write_text('{"max_position_embeddings": 64, "vocab_size": 8}')
    with pytest.raises(CheckpointError, match=f"{TOKENIZER}: must have at most 256 MiB"):
        Tokenizer.load(tmp_path)


def test_json_nested_without_end_is_no_json(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"a":' * 200_000)
    with pytest.raises(CheckpointError, match="is not JSON: "):
        read_json_file(tmp_path / CONFIG)
