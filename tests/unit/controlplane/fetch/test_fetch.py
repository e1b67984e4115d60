"""`baton fetch` against a hub on loopback: interrupted, crowded, deceived, alone."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants as hub_constants
import pytest
from support.capabilities import without_rights_over_files
from support.eventually import eventually
from support.hub import COMMIT, HubServer, hub_server, sha256_list

from controlplane.fetch.download import Downloads, NoRoom, WrongDigest
from controlplane.fetch.fetch import fetched_folder
from controlplane.fetch.listing import Listing, RemoteFile
from controlplane.fetch.settings import FetchSettings
from protocol.errors import CheckpointError, SettingsError
from protocol.process.model_folder import resolve_model
from protocol.process.settings import load
from tools.make_checkpoint import Shape, make_checkpoint

NAME = "acme/small-1.0"
SMALL = Shape(hidden=32, heads=2, kv_heads=1, mlp=48)
WEIGHTS = "model.safetensors"


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


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetched(
    model: str, cache: Path, *, hub: HubServer | None = None, offline: bool = False, **flags: Any
) -> Path:
    """Here, with the hub there; without one nobody answers."""
    with pytest.MonkeyPatch.context() as patch:
        endpoint = hub.url if hub else "http://127.0.0.1:1"
        patch.setattr(hub_constants, "HF_HUB_OFFLINE", offline)
        patch.setattr(hub_constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        settings = FetchSettings(model=model, cache=cache, **{"retries": 0, **flags})
        return fetched_folder(settings)


def refused(
    model: str, cache: Path, *, hub: HubServer | None = None, offline: bool = False, **flags: Any
) -> str:
    with pytest.raises((CheckpointError, NoRoom, WrongDigest)) as said:
        fetched(model, cache, hub=hub, offline=offline, **flags)
    assert "\n" not in str(said.value)
    return str(said.value)


def begin_fetch(model: str, cache: Path, *, hub: HubServer) -> "subprocess.Popen[str]":
    """As an init container does it."""
    kept = {key: one for key, one in os.environ.items() if not key.startswith(("HF_", "BATON_"))}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub.url, "HOME": "/nowhere"}
    command = [sys.executable, "-m", "controlplane.cli.main", "fetch"]
    return subprocess.Popen(
        [*command, "--model", model, "--cache", str(cache)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=cache.parent, env={**kept, **paths},
    )  # fmt: skip


def printed(fetch: "subprocess.Popen[str]") -> Path:
    out, err = fetch.communicate(timeout=60)
    assert fetch.returncode == 0, err
    return Path(out.strip())


def whole(folder: Path, checkpoint: Path) -> bool:
    return all((folder / one.name).read_bytes() == one.read_bytes() for one in checkpoint.iterdir())


def partial_of(cache: Path) -> Path:
    return cache / ".baton" / f"acme--small-1.0@{COMMIT}"


def test_a_model_is_fetched_once_and_workers_know_its_name_and_commit(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    folder = fetched(NAME, cache, hub=hub)
    assert folder == cache / "acme" / "small-1.0@main"
    assert folder.resolve() == cache / "acme" / f"small-1.0@{COMMIT}"
    assert whole(folder, checkpoint)
    hub.sent.clear()
    assert fetched(NAME, cache, hub=hub) == folder
    assert hub.sent == []
    found = resolve_model(folder)
    assert (found.name, found.revision, found.path) == (NAME, COMMIT, folder.resolve())


def test_only_the_fetcher_writes_a_model(cache: Path, hub: HubServer) -> None:
    folder = fetched(NAME, cache, hub=hub)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {0o444}
    resolve_model(folder)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_fetch_that_is_killed_goes_on_where_it_was(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    hub.held[WEIGHTS] = threading.Event()
    first, half = begin_fetch(NAME, cache, hub=hub), (checkpoint / WEIGHTS).stat().st_size // 2
    written = partial_of(cache) / WEIGHTS
    try:
        eventually(lambda: written.exists() and written.stat().st_size == half)
        first.kill()
        first.communicate()
        assert not (cache / "acme").exists()
    finally:
        hub.held.pop(WEIGHTS).set()
    folder = fetched(NAME, cache, hub=hub)
    assert hub.ranges == [f"{WEIGHTS} bytes={half}-"]
    assert whole(folder, checkpoint)


def test_a_connection_that_breaks_is_taken_up_by_the_same_fetch(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    hub.cut_at[WEIGHTS] = 1000
    folder = fetched(NAME, cache, hub=hub, retries=3)
    assert hub.ranges == [f"{WEIGHTS} bytes=1000-"]
    assert whole(folder, checkpoint)


def test_two_at_once_fetch_once(cache: Path, checkpoint: Path, hub: HubServer) -> None:
    hub.held[WEIGHTS] = threading.Event()
    both = [begin_fetch(NAME, cache, hub=hub) for _ in range(2)]
    try:
        eventually(lambda: WEIGHTS in hub.sent)
        eventually(lambda: len(hub.looks) == 2)
    finally:
        hub.held.pop(WEIGHTS).set()
    folders = [printed(one) for one in both]
    assert folders[0] == folders[1] and whole(folders[0], checkpoint)
    assert sorted(hub.sent) == sorted(set(hub.sent))


def test_a_wrong_digest_is_told_and_leaves_nothing_of_the_file(cache: Path, hub: HubServer) -> None:
    hub.false_sha256[WEIGHTS] = "0" * 64
    said = refused(NAME, cache, hub=hub)
    assert f"{WEIGHTS}: its SHA-256 is " in said and "not 0000000000000000" in said
    assert "what came is removed" in said
    assert not (partial_of(cache) / WEIGHTS).exists()
    assert not (cache / "acme").exists()


def test_what_was_left_of_another_file_is_fetched_from_its_beginning(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    partial_of(cache).mkdir(parents=True)
    (partial_of(cache) / WEIGHTS).write_bytes(b"not its beginning")
    assert whole(fetched(NAME, cache, hub=hub), checkpoint)


def test_without_a_network_the_cache_serves_what_it_has(cache: Path, hub: HubServer) -> None:
    folder = fetched(NAME, cache, hub=hub)
    assert fetched(NAME, cache) == folder
    assert fetched(NAME, cache, hub=hub, offline=True) == folder
    by_commit = fetched(f"{NAME}@{COMMIT}", cache, offline=True)
    assert by_commit == folder.resolve()


@pytest.mark.parametrize("offline", [False, True])
def test_what_neither_hub_nor_cache_has_is_told_with_the_remedy(cache: Path, offline: bool) -> None:
    said = refused(NAME, cache, offline=offline)
    assert said.startswith(f"{NAME}@main: ")
    assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:1 cannot be reached") in said
    assert f"the cache {cache} does not have it; fetch it once where the network is" in said


def test_an_entry_that_lost_a_file_is_made_whole(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    folder = fetched(NAME, cache, hub=hub)
    (folder / WEIGHTS).unlink()
    hub.sent.clear()
    assert whole(fetched(NAME, cache, hub=hub), checkpoint)
    assert hub.sent == [WEIGHTS]


@pytest.mark.parametrize("left", [0, 1000])
@pytest.mark.parametrize("source", ["hub", "list"])
def test_an_entry_of_which_a_file_lost_its_end_is_made_whole_by_any_user(
    cache: Path, checkpoint: Path, hub: HubServer, source: str, left: int
) -> None:
    address = listed(hub, checkpoint)
    model = NAME if source == "hub" else address
    with without_rights_over_files():
        folder = fetched(model, cache, hub=hub)
    os.truncate(folder / WEIGHTS, left)
    with without_rights_over_files():
        assert whole(fetched(model, cache, hub=hub), checkpoint)


def test_an_entry_whose_marker_lost_its_end_is_made_whole(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    folder = fetched(NAME, cache, hub=hub)
    os.truncate(folder / "baton-fetched.json", 10)
    with without_rights_over_files():
        folder = fetched(NAME, cache, hub=hub)
    assert whole(folder, checkpoint)
    assert resolve_model(folder).revision == COMMIT


@pytest.mark.parametrize("is_anothers", [False, True])
def test_a_finish_that_was_killed_is_finished_by_any_user_of_the_group(
    cache: Path, checkpoint: Path, hub: HubServer, is_anothers: bool
) -> None:
    entry = fetched(NAME, cache, hub=hub).resolve()
    entry.rename(partial_of(cache))  # all is there, the marker read-only, and not yet at its place
    if is_anothers:
        give_away(partial_of(cache))
    with without_rights_over_files():
        folder = fetched(NAME, cache, hub=hub)
    assert whole(folder, checkpoint)
    told = json.loads((folder / "baton-fetched.json").read_text())
    assert set(told["files"]) == {one.name for one in folder.iterdir()} - {"baton-fetched.json"}


def give_away(folder: Path) -> None:
    """To another user of our group."""
    try:
        for path in (*folder.iterdir(), folder):
            os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("needs the right to give files away")
    folder.chmod(0o775)


def listed(hub: HubServer, folder: Path) -> str:
    """The address of a list of the files of `folder`."""
    files = {one.name: one.read_bytes() for one in folder.iterdir()}
    hub.lists = {f"/models/small/{name}": text for name, text in files.items()}
    hub.lists["/models/small/SHA256SUMS"] = sha256_list(files)
    return f"{hub.url}/models/small/SHA256SUMS"


def test_a_list_of_files_is_fetched_by_its_address(
    cache: Path, checkpoint: Path, hub: HubServer
) -> None:
    address = listed(hub, checkpoint)
    hub.cut_at[f"/models/small/{WEIGHTS}"] = 100
    folder = fetched(address, cache, retries=1)
    assert folder == cache / "small@main" and whole(folder, checkpoint)
    found = resolve_model(folder)
    assert found.name == "small" and len(found.revision) == 40


SECRET = "s3cret"


def with_secrets(address: str) -> str:
    """A name and a password, and a signature."""
    return f"{address.replace('http://', f'http://me:{SECRET}@')}?signature={SECRET}"


def test_a_password_is_sent_and_neither_kept_nor_shown(
    cache: Path, checkpoint: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    address = listed(hub, checkpoint)
    hub.lists["/models/small/SHA256SUMS?signature=s3cret"] = hub.lists["/models/small/SHA256SUMS"]
    folder = fetched(with_secrets(address), cache)
    assert {one.split()[0] for one in hub.tokens} == {"Basic"}
    told = json.loads((folder / "baton-fetched.json").read_text())
    assert told["source"] == address
    assert not any(SECRET.encode() in one.read_bytes() for one in cache.rglob("*") if one.is_file())
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/none/SHA256SUMS", None),
        ("/m/SHA256SUMS", b"no list"),
        ("/m/SHA256SUMS", b"\xff"),
        ("/m/SHA256SUMS", b""),
        ("/m/SHA256SUMS", sha256_list({"../x": b""})),
        ("/m/SHA256SUMS", sha256_list({"gone.json": b""})),
        ("/m/SHA256SUMS", sha256_list({"wrong.json": b""})),
        ("/%/SHA256SUMS", b""),
    ],
)
def test_no_error_shows_a_password_or_a_signature(
    cache: Path, hub: HubServer, path: str, text: bytes | None
) -> None:
    hub.lists = {"/m/wrong.json": b"wrong"}
    if text is not None:
        hub.lists[f"{path}?signature={SECRET}"] = text
    for address in (f"{hub.url}{path}", f"http://127.0.0.1:1{path}"):
        said = refused(with_secrets(address), cache)
        assert SECRET not in said and (path in said or "/m/" in said)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:s3/cret@h/m/SHA256SUMS",
        "http://me:s3\u2100cret@h/m/SHA256SUMS",
        "s3://me:s3cret@h/m/SHA256SUMS?signature=s3cret",
        "https:///m/SHA256SUMS",
    ],
)
def test_what_is_no_address_is_refused_without_it(address: str) -> None:
    with pytest.raises(SettingsError, match="must be an address") as said:
        load(FetchSettings, ["--model", address])
    assert "cret" not in str(said.value)


def test_no_more_of_a_list_is_read_than_a_list_may_have(cache: Path, hub: HubServer) -> None:
    hub.lists["/m/SHA256SUMS"] = b"x" * (64 << 20)
    said = refused(f"{hub.url}/m/SHA256SUMS", cache)
    assert "at least 4194305 bytes" in said


def test_no_more_of_a_file_is_kept_than_it_has(cache: Path, hub: HubServer) -> None:
    file = RemoteFile(name="a", url=f"{hub.url}/a", digest=f"sha256:{'0' * 64}", num_bytes=5)
    hub.lists["/a"] = b"x" * (8 << 20)
    sizes: list[int] = []
    with httpx.Client(trust_env=False) as client:
        listing = Listing(model="m", revision="r", files=(file,))
        downloads = Downloads(client, listing, retries=0, note=sizes.append)
        with pytest.raises(WrongDigest):
            downloads.fetch(file, cache / "a")
    assert sum(sizes) == 5


def test_a_list_that_is_not_the_one_named_is_refused(cache: Path, hub: HubServer) -> None:
    hub.lists["/m/SHA256SUMS"] = sha256_list({"config.json": b"{}"})
    said = refused(f"{hub.url}/m/SHA256SUMS", cache, sha256="0" * 64)
    assert "is not the list of --sha256 0000000000000000" in said


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a//b", ".baton/x", "a/../../b"])
def test_no_file_of_a_list_lies_outside_the_model(cache: Path, hub: HubServer, name: str) -> None:
    hub.lists["/m/SHA256SUMS"] = sha256_list({name: b""})
    said = refused(f"{hub.url}/m/SHA256SUMS", cache)
    assert "must be a path below the model's folder" in said


def test_a_folder_is_only_looked_at(cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert fetched(str(checkpoint), cache) == checkpoint
    assert not cache.exists()
    assert "no such folder" in refused(str(tmp_path / "none"), cache)


def test_a_gated_model_says_what_to_do(
    cache: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(NAME)
    assert "HF_TOKEN" in refused(NAME, cache, hub=hub)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert fetched(NAME, cache, hub=hub)
    assert hub.tokens == {"Bearer hf_x"}


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "file").write_text("")
    said = refused(NAME, tmp_path / "file" / "cache", hub=hub)
    assert "cannot be written" in said and "--cache" in said


@pytest.mark.parametrize("source", ["hub", "list"])
def test_a_full_disk_is_told_with_what_is_missing(
    tiny_disk: Path, checkpoint: Path, hub: HubServer, source: str
) -> None:
    """The hub says sizes before; of a list the disk is full when it is."""
    text = b"x" * (2 << 20)
    hub.repos[NAME] = {COMMIT: {**hub.repos[NAME][COMMIT], WEIGHTS: text}}
    hub.lists["/m/SHA256SUMS"] = sha256_list({WEIGHTS: text})
    hub.lists[f"/m/{WEIGHTS}"] = text
    model = NAME if source == "hub" else f"{hub.url}/m/SHA256SUMS"
    said = refused(model, tiny_disk / "cache", hub=hub)
    assert f"no room in the cache {tiny_disk}/cache" in said
    assert "make room there, or take a larger volume: what has come is kept" in said


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Of one MiB; skipped where this user may mount none."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_marker_says_where_a_model_came_from(cache: Path, hub: HubServer) -> None:
    folder = fetched(NAME, cache, hub=hub)
    told = json.loads((folder / "baton-fetched.json").read_text())
    assert (told["model"], told["revision"], told["source"]) == (NAME, COMMIT, NAME)
    assert told["files"][WEIGHTS] > 0
