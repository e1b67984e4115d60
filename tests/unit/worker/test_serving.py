"""What a worker makes of a checkpoint before it serves."""

from contextlib import closing
from pathlib import Path

from support.hub import COMMIT, OTHER, fill_cache

from protocol.process.model_folder import resolve_model
from protocol.process.settings import WorkerSettings
from tools.make_checkpoint import Shape, make_checkpoint
from worker.serving import open_model


def test_a_worker_ends_texts_by_the_union_of_all_files_for_sampler_and_scheduler(
    tmp_path: Path,
) -> None:
    """Token 0 is of tokenizer_config.json, 2 of config.json, 5 of generation_config.json."""
    make_checkpoint(tmp_path, Shape(eos_token_ids=(2,)))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    settings = WorkerSettings(
        model=tmp_path, redis="redis://localhost", dtype="float32", kv_blocks=2
    )
    model = open_model("decode", settings)
    with closing(model.memory):
        assert model.tokenizer.eos_token_ids == (0, 2, 5)
        assert model.assembly.eos_token_ids == {0, 2, 5}
        assert set(model.assembly.runner.eos_token_ids) == {0, 2, 5}


def test_two_revisions_of_one_name_are_never_paired(tmp_path: Path) -> None:
    """What is hashed are the bytes: the same ones in another revision, or folder, do pair."""
    make_checkpoint(tmp_path / "made", Shape())
    make_checkpoint(tmp_path / "newer", Shape(seed=1))
    first = fill_cache(tmp_path, tmp_path / "made", name="acme/small", commit=COMMIT)
    other = fill_cache(tmp_path, tmp_path / "newer", name="acme/small", commit=OTHER, ref="v2")
    assert resolve_model(first).name == resolve_model(other).name
    compat = [compat_of(path) for path in (first, other, tmp_path / "made")]
    assert compat[0] != compat[1]
    assert compat[0] == compat[2]


def compat_of(path: Path) -> str:
    model = open_model("decode", WorkerSettings(model=path, dtype="float32", kv_blocks=2))
    with closing(model.memory):
        return model.assembly.compat
