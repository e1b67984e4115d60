"""The files in which sentence-transformers keeps how a checkpoint makes a vector of a text."""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CheckpointError
from protocol.text.pooling_config import PoolingConfig, read_pooling_config

NAMES = ("Transformer", "Pooling", "Normalize")


def modules(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "idx": index, "name": str(index), "type": f"sentence_transformers.models.{name}",
            "path": f"{index}_{name}" if index else "",
        }
        for index, name in enumerate(names)
    ]  # fmt: skip


def write(path: Path, pooling: dict[str, Any], *names: str, **config: Any) -> Path:
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (path / "modules.json").write_text(json.dumps(modules(*names)))
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_without_the_files_a_decoder_has_its_last_token(tmp_path: Path) -> None:
    assert read_pooling_config(tmp_path) == PoolingConfig(kind="last", is_normalised=True)


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_kind_is_that_of_the_files(tmp_path: Path, pooling: dict[str, Any], kind: str) -> None:
    read = read_pooling_config(write(tmp_path, pooling, *NAMES))
    assert (read.kind, read.is_normalised, read.refusal) == (kind, True, "")


def test_a_vector_is_left_as_it_is_where_nothing_brings_it_to_length_one(tmp_path: Path) -> None:
    read = read_pooling_config(write(tmp_path, {"pooling_mode_cls_token": True}, *NAMES[:2]))
    assert not read.is_normalised


@pytest.mark.parametrize(
    ("pooling", "names", "refusal"),
    [
        ({"pooling_mode_max_tokens": True}, NAMES, "pooling max_tokens"),
        ({"pooling_mode_weightedmean_tokens": True}, NAMES, "pooling weightedmean_tokens"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, NAMES,
            "pooling cls_token, mean_tokens",
        ),
        ({}, (*NAMES[:2], "Dense"), "modules Transformer, Pooling, Dense"),
    ],
)  # fmt: skip
def test_what_is_done_otherwise_is_named(
    tmp_path: Path, pooling: dict[str, Any], names: tuple[str, ...], refusal: str
) -> None:
    assert read_pooling_config(write(tmp_path, pooling, *names)).refusal == refusal


def test_a_folder_of_another_name_is_read_where_the_modules_say_so(tmp_path: Path) -> None:
    write(tmp_path, {"pooling_mode_cls_token": True}, *NAMES)
    (tmp_path / "1_Pooling").rename(tmp_path / "pool.last")
    listed = (tmp_path / "modules.json").read_text().replace("1_Pooling", "pool.last")
    (tmp_path / "modules.json").write_text(listed)
    assert read_pooling_config(tmp_path).kind == "cls"


@pytest.mark.parametrize("folder", ["gone", "../1_Pooling", "", "."])
def test_a_file_that_is_not_there_refuses_embeddings_alone(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {"pooling_mode_cls_token": True}, *NAMES)
    listed = (tmp_path / "modules.json").read_text().replace("1_Pooling", folder)
    (tmp_path / "modules.json").write_text(listed)
    assert "does not tell" in read_pooling_config(tmp_path).refusal


def test_matryoshka_is_said_by_the_models_config(tmp_path: Path) -> None:
    plain = {"pooling_mode_cls_token": True}
    read = read_pooling_config(write(tmp_path, plain, *NAMES, matryoshka_dimensions=[64, 8]))
    assert (read.is_matryoshka, read.dimensions) == (True, frozenset({8, 64}))
    (tmp_path / "config.json").write_text('{"is_matryoshka": true}')
    assert read_pooling_config(tmp_path).is_matryoshka


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense"])
def test_a_file_that_is_no_list_of_modules_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_pooling_config(tmp_path)
