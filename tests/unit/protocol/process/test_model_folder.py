"""A model by name, by folder and by cache: the hub's own library, against a server on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
from support.hub import COMMIT, OTHER, HubServer, fill_cache, hub_server

from protocol.errors import CheckpointError
from protocol.process.model_folder import ModelFolder, resolve_model
from protocol.process.settings import WorkerSettings
from tools.make_checkpoint import Shape, make_checkpoint

NAME = "acme/small-1.0"
SMALL = Shape(hidden=32, heads=2, kv_heads=1, mlp=48)
SCRIPT = """
import json, sys
from pathlib import Path
from protocol.errors import CheckpointError
from protocol.process.model_folder import resolve_model
try:
    print(json.dumps({"path": str(resolve_model(Path(sys.argv[1])).path)}))
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "made"
    make_checkpoint(path, SMALL)
    return path


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        server.put(NAME, checkpoint)
        yield server


def in_a_process(model: str, *, home: Path, **variables: str) -> Mapping[str, str]:
    """What a process with these variables makes of `--model`; the library reads them once."""
    kept = {key: one for key, one in os.environ.items() if not key.startswith(("HF_", "BATON_"))}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model], capture_output=True, text=True, timeout=120,
        check=True, cwd=home, env={**kept, **paths, **variables},
    )  # fmt: skip
    said: Mapping[str, str] = json.loads(done.stdout)
    return said


def ask(model: str, *, home: Path, hub: HubServer | None = None) -> Mapping[str, object]:
    """As a process would whose HF_HOME is this, and HF_ENDPOINT that of `hub`; offline without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", hub is None)
        endpoint = hub.url if hub else "http://nowhere.invalid"
        patch.setattr(hub_constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setenv("HF_TOKEN", "")
        patch.chdir(home)
        try:
            found = resolve_model(Path(model))
        except CheckpointError as error:
            return {"error": str(error)}
    told = {"path": str(found.path), "name": found.name, "revision": found.revision}
    return told | {"files": sorted(file.name for file in found.path.iterdir())}


def error_of(said: Mapping[str, object] | Mapping[str, str]) -> str:
    error = str(said["error"])
    assert "\n" not in error
    return error


def test_a_name_is_found_in_the_cache_without_a_network(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = fill_cache(tmp_path, checkpoint, name=NAME)
    said = ask(NAME, home=tmp_path)
    assert said["path"] == str(snapshot)
    assert (said["name"], said["revision"]) == (NAME, COMMIT)
    assert "model.safetensors" in str(said["files"])


def test_a_revision_of_the_cache_is_found_by_its_ref_and_by_its_commit(
    tmp_path: Path, checkpoint: Path
) -> None:
    fill_cache(tmp_path, checkpoint, name=NAME)
    fill_cache(tmp_path, checkpoint, name=NAME, commit=OTHER, ref="v2")
    assert ask(f"{NAME}@v2", home=tmp_path)["revision"] == OTHER
    assert ask(f"{NAME}@{OTHER}", home=tmp_path)["revision"] == OTHER


def test_a_process_honours_the_variables_of_the_hub_offline(
    tmp_path: Path, checkpoint: Path
) -> None:
    snapshot = fill_cache(tmp_path / "elsewhere", checkpoint, name=NAME)
    elsewhere = {"HF_HUB_CACHE": str(snapshot.parents[2]), "HF_HUB_OFFLINE": "1"}
    assert in_a_process(NAME, home=tmp_path, **elsewhere) == {"path": str(snapshot)}
    (tmp_path / "elsewhere").rename(tmp_path / "home")
    said = in_a_process(NAME, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    assert said == {"path": str(snapshot).replace("elsewhere", "home")}


def test_what_no_cache_holds_is_told_with_the_remedy(tmp_path: Path) -> None:
    error = error_of(ask(NAME, home=tmp_path))
    assert error.startswith(f"{NAME}: not wholly in the cache {tmp_path}/hub")
    assert "HF_HUB_OFFLINE is set" in error
    assert f"hf download {NAME}" in error


@pytest.mark.long  # the library tries again, and again
def test_a_hub_that_is_not_there_is_told(tmp_path: Path, checkpoint: Path) -> None:
    with hub_server() as gone:
        pass
    error = error_of(ask(NAME, home=tmp_path, hub=gone))
    assert f"{gone.url} cannot be reached" in error
    fill_cache(tmp_path, checkpoint, name=NAME)
    assert ask(NAME, home=tmp_path, hub=gone)["revision"] == COMMIT, "the cache still serves"


def test_a_name_is_downloaded_and_then_found_offline(tmp_path: Path, hub: HubServer) -> None:
    said = ask(NAME, home=tmp_path, hub=hub)
    assert (said["name"], said["revision"]) == (NAME, COMMIT)
    assert hub.sent.count("model.safetensors") == 1
    assert ask(NAME, home=tmp_path, hub=hub) == said
    assert hub.sent.count("model.safetensors") == 1, "once"
    assert ask(NAME, home=tmp_path) == said


def test_a_download_shows_no_bar_where_there_is_no_terminal(
    tmp_path: Path, hub: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    ask(NAME, home=tmp_path, hub=hub)
    assert "Fetching" not in capfd.readouterr().err


def test_only_what_is_read_is_downloaded(tmp_path: Path, checkpoint: Path, hub: HubServer) -> None:
    others = ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "x.gguf")
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    hub.repos[NAME] = {COMMIT: files | dict.fromkeys((*others, "onnx/model.onnx"), b"large")}
    assert ask(NAME, home=tmp_path, hub=hub)["files"] == sorted(files)


def test_shards_are_downloaded_by_their_index(tmp_path: Path, hub: HubServer) -> None:
    make_checkpoint(tmp_path / "made", Shape(**(vars(SMALL) | {"shard_bytes": 20_000})))
    hub.put(NAME, tmp_path / "made")
    said = ask(NAME, home=tmp_path, hub=hub)
    assert said["files"] == sorted(file.name for file in (tmp_path / "made").iterdir())


def test_a_revision_is_downloaded(tmp_path: Path, checkpoint: Path, hub: HubServer) -> None:
    hub.put(NAME, checkpoint, commit=OTHER)
    hub.refs["v2"] = OTHER
    assert ask(f"{NAME}@v2", home=tmp_path, hub=hub)["revision"] == OTHER
    error = error_of(ask(f"{NAME}@v3", home=tmp_path, hub=hub))
    assert f"{NAME}@v3: {hub.url}/{NAME} has no such revision" in error


def test_a_model_that_is_not_there_is_told(tmp_path: Path, hub: HubServer) -> None:
    error = error_of(ask("acme/none", home=tmp_path, hub=hub))
    assert f"acme/none: no such folder, nor a model at {hub.url}" in error
    assert "HF_TOKEN" in error


def test_a_gated_model_asks_for_a_token_and_takes_one(tmp_path: Path, hub: HubServer) -> None:
    hub.gated.add(NAME)
    given = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    error = error_of(in_a_process(NAME, home=tmp_path, **given))
    assert "is gated" in error
    assert f"{hub.url}/{NAME}" in error
    said = in_a_process(NAME, home=tmp_path, HF_TOKEN="hf_x", **given)
    assert said["path"].endswith(f"snapshots/{COMMIT}")
    assert hub.tokens == {"Bearer hf_x"}


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "pytorch_model.bin, a pickle"),
        (["README.md", "m-q4.gguf"], "m-q4.gguf, of llama.cpp"),
        (["config.json", "tokenizer.model", "model.safetensors"], "of SentencePiece"),
    ],
)
def test_a_repository_of_another_form_is_told(
    tmp_path: Path, hub: HubServer, files: list[str], what: str
) -> None:
    hub.repos[NAME] = {COMMIT: dict.fromkeys(files, b"{}")}
    error = error_of(ask(NAME, home=tmp_path, hub=hub))
    assert error.startswith(f"{NAME}/")
    assert what in error
    assert "pytorch_model.bin" not in hub.sent


def test_an_existing_directory_goes_before_a_name(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / NAME).symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(Path(NAME)) == ModelFolder(path=Path(NAME), name="made")


def test_a_folder_of_the_cache_is_its_model(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = fill_cache(tmp_path, checkpoint, name=NAME)
    found = ModelFolder(path=snapshot, name=NAME, revision=COMMIT)
    assert resolve_model(snapshot) == found
    assert resolve_model(snapshot.parent.parent) == found
    fill_cache(tmp_path, checkpoint, name=NAME, commit=OTHER, ref="v2")
    assert resolve_model(snapshot.parent.parent) == found, "main's"
    link = tmp_path / "current"
    link.symlink_to(snapshot)
    assert resolve_model(link).name == NAME, "by its name, never by a digest"


def test_a_folder_of_the_cache_without_main_has_one_snapshot_or_is_refused(
    tmp_path: Path, checkpoint: Path
) -> None:
    snapshot = fill_cache(tmp_path, checkpoint, name=NAME, ref=None)
    assert resolve_model(snapshot.parent.parent).path == snapshot
    fill_cache(tmp_path, checkpoint, name=NAME, commit=OTHER, ref="v2")
    with pytest.raises(CheckpointError, match=f"no snapshot of main; there is {COMMIT}, {OTHER}"):
        resolve_model(snapshot.parent.parent)


def test_a_ref_to_a_snapshot_that_is_gone_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    repo = fill_cache(tmp_path, checkpoint, name=NAME).parent.parent
    (repo / "refs" / "main").write_text(OTHER)
    with pytest.raises(CheckpointError, match="no snapshot of main"):
        resolve_model(repo)


def test_a_blob_that_is_gone_is_named_with_the_command(tmp_path: Path, checkpoint: Path) -> None:
    snapshot = fill_cache(tmp_path, checkpoint, name=NAME)
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(CheckpointError, match=rf"link to .*hf download {NAME} --revision {COMMIT}"):
        resolve_model(snapshot)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("nowhere", "no such folder; a model by name is ORG/NAME"),
        ("/nowhere/at/all", "no such folder"),
        ("a/b/c", "no such folder"),
        ("a/b@", "no such folder"),
        ("a b/c", "no such folder"),
        ("made/config.json", "is a file; give the folder"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_what_is_neither_folder_nor_name_is_refused_without_a_network(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, model: str, why: str
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(CheckpointError, match=why):
        resolve_model(Path(model))


@pytest.mark.parametrize(
    "typed", ["./acme/none", "../acme/none", "~/acme/none", "~nobody-here/none"]
)
def test_a_path_is_never_taken_for_a_name(typed: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(WorkerSettings(model=typed).model)


def test_a_gguf_file_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(CheckpointError, match="is a GGUF file"):
        resolve_model(tmp_path / "m.gguf")


def test_the_library_of_the_hub_is_loaded_for_names_alone() -> None:
    command = "import sys, router.server; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True, timeout=60)
