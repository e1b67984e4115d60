import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint.dtype import stored_dtype
from engine.checkpoint.load import load_model
from engine.checkpoint.safetensors import Checkpoint
from engine.models.model import Dtype
from protocol.errors import CheckpointError
from tools.make_checkpoint import Shape, make_checkpoint

GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, Shape(hidden=32, heads=2, kv_heads=1, mlp=48))
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, Shape(hidden=32, heads=2, kv_heads=1, mlp=48, shard_bytes=20_000))
    return tmp_path


def failure(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, dtype="float32", native=False)
    return str(caught.value)


def rename_in_header(file: Path, old: bytes, new: bytes) -> None:
    """Same length, so that offsets stay."""
    assert len(old) == len(new)
    raw = file.read_bytes()
    assert old in raw
    file.write_bytes(raw.replace(old, new, 1))


def test_one_file_and_many_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    shape = Shape(hidden=32, heads=2, kv_heads=1, mlp=48)
    make_checkpoint(tmp_path / "single", shape)
    make_checkpoint(tmp_path / "sharded", Shape(**(vars(shape) | {"shard_bytes": 20_000})))
    one, many = Checkpoint(tmp_path / "single"), Checkpoint(tmp_path / "sharded")
    assert len({stored.file for stored in many.tensors.values()}) > 2
    for name, stored in one.tensors.items():
        read = [c.read(name, shape=stored.shape, dtype=torch.float32) for c in (one, many)]
        assert torch.equal(*read)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_on_disk_is_converted(tmp_path: Path, dtype: str) -> None:
    make_checkpoint(tmp_path, Shape(dtype=dtype))  # type: ignore[arg-type]
    checkpoint = Checkpoint(tmp_path)
    embedding = checkpoint.read("model.embed_tokens.weight", shape=(512, 64), dtype=torch.float32)
    assert embedding.dtype == torch.float32
    assert 0.9 < float(embedding.std()) < 1.1


def test_doubles_are_converted(single: Path) -> None:
    file = single / "model.safetensors"
    expected = load_file(file)
    save_file({name: tensor.double() for name, tensor in expected.items()}, file)
    got = Checkpoint(single).read(GATE, shape=(48, 32), dtype=torch.float32)
    assert torch.equal(got, expected[GATE])
    assert stored_dtype(single, {}) == "float64"


def test_progress_ends_at_the_whole(single: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(single, dtype="float32", native=False, progress=lambda *at: seen.append(at))
    done = [at for at, _ in seen]
    assert done == sorted(done)
    whole = sum(stored.num_bytes for stored in Checkpoint(single).tensors.values())
    assert seen[-1][0] == seen[-1][1] == whole


def test_a_truncated_file_names_itself_and_the_tensor_it_ends_in(single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    message = failure(single)
    assert "model.safetensors: is truncated" in message
    assert "tensor " in message


@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_a_file_cut_inside_its_header_is_refused(single: Path, size: int) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors: is truncated or not safetensors" in failure(single)


def test_a_file_of_garbage_is_refused(single: Path) -> None:
    (single / "model.safetensors").write_bytes(b"\x40" + b"\0" * 7 + b"x" * 100)
    assert "model.safetensors: header cannot be read" in failure(single)


def test_a_missing_file_is_named(single: Path) -> None:
    (single / "model.safetensors").unlink()
    assert "model.safetensors: missing" in failure(single)


def test_missing_shards_are_named(sharded: Path) -> None:
    num_shards = len(list(sharded.glob("model-*")))
    for number in (2, 3):
        next(sharded.glob(f"model-0000{number}*")).unlink()
    message = failure(sharded)
    assert "model-00002-of-" in message
    assert "model-00003-of-" in message
    assert f"missing; of {num_shards} shards 2 are" in message


@pytest.mark.parametrize("shards", [{GATE: 7}, {GATE: None}, {GATE: ["a"]}, {GATE: "/a/b"}])
def test_an_index_of_anything_but_file_names_is_refused(
    sharded: Path, shards: dict[str, object]
) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "is not a file name" in failure(sharded)


def test_shards_may_lie_in_a_folder_below(sharded: Path) -> None:
    expected = Checkpoint(sharded).tensors
    file = sharded / "model.safetensors.index.json"
    names = json.loads(file.read_text())["weight_map"]
    (sharded / "shards").mkdir()
    for shard in set(names.values()):
        (sharded / shard).rename(sharded / "shards" / shard)
    below = {name: f"shards/{shard}" for name, shard in names.items()}
    file.write_text(json.dumps({"weight_map": below}))
    assert Checkpoint(sharded).tensors.keys() == expected.keys()


def test_a_shard_whose_name_no_file_can_have_is_missing(sharded: Path) -> None:
    names = {"weight_map": {GATE: "x" * 300}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(names))
    assert "x: missing; of 1 shards 1 are" in failure(sharded)


@pytest.mark.parametrize("entry", ["7", "{}", '{"dtype": "F32", "shape": [1e999]}', "[]"])
def test_a_malformed_entry_is_named(single: Path, entry: str) -> None:
    header = f'{{"a": {entry}}}'.replace("]}}", '], "data_offsets": [0, 4]}}')
    text = struct.pack("<Q", len(header)) + header.encode()
    (single / "model.safetensors").write_bytes(text + b"\0" * 64)
    assert "tensor a: malformed header entry" in failure(single)


@pytest.mark.parametrize("header", ["[1, 2]", "77", "[" * 100_000])
def test_a_header_that_is_no_object_is_refused(single: Path, header: str) -> None:
    text = struct.pack("<Q", len(header)) + header.encode()
    (single / "model.safetensors").write_bytes(text + b"\0" * 64)
    assert "model.safetensors: header" in failure(single)


def test_a_missing_tensor_is_named(single: Path) -> None:
    rename_in_header(single / "model.safetensors", GATE.encode(), GATE.replace("e", "x").encode())
    assert f"tensor {GATE} is missing" in failure(single)


def test_a_tensor_the_index_promises_and_the_shard_lacks_is_named(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.extra.weight"] = index["weight_map"][GATE]
    file.write_text(json.dumps(index))
    assert "tensor model.extra.weight is missing" in failure(sharded)


def test_an_index_that_leaves_the_directory_is_refused(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {GATE: "../model.safetensors"}}))
    assert "'../model.safetensors' is not a file name" in failure(sharded)


def test_a_wrongly_shaped_tensor_names_both_shapes(single: Path) -> None:
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    message = failure(single)
    assert "model.safetensors: tensor model.layers.0.mlp.gate_proj.weight" in message
    assert "[48, 32]" in message
    assert "[64, 32]" in message


def test_an_unknown_dtype_is_refused_by_name(single: Path) -> None:
    rename_in_header(single / "model.safetensors", b'"F32"', b'"I32"')
    assert "is I32" in failure(single)


def test_a_tensor_whose_size_does_not_fit_its_shape_is_refused(single: Path) -> None:
    rename_in_header(single / "model.safetensors", b"[512,32]", b"[512,31]")
    assert "its size does not fit its shape" in failure(single)


def revision(path: Path, shape: Shape, *, dtype: Dtype = "float32") -> str:
    if not path.exists():
        make_checkpoint(path, shape)
    return load_model(path, dtype=dtype, native=False).config.revision


def test_the_revision_changes_with_the_configuration_and_with_every_weight(tmp_path: Path) -> None:
    of_one = revision(tmp_path / "a", Shape())
    assert revision(tmp_path / "b", Shape()) == of_one
    assert revision(tmp_path / "c", Shape(rope_theta=5e5)) != of_one
    assert revision(tmp_path / "d", Shape(seed=1)) != of_one
    file = tmp_path / "b" / "model.safetensors"
    stored = Checkpoint(tmp_path / "b").tensors[GATE]
    raw = bytearray(file.read_bytes())
    raw[stored.offset + stored.num_bytes - 1] ^= 1
    file.write_bytes(raw)
    assert revision(tmp_path / "b", Shape()) != of_one


def test_the_revision_is_that_of_the_files_whatever_they_are_loaded_to(tmp_path: Path) -> None:
    of_one = revision(tmp_path / "a", Shape())
    assert revision(tmp_path / "a", Shape(), dtype="bfloat16") == of_one
    assert revision(tmp_path / "b", Shape(shard_bytes=100_000)) == of_one
