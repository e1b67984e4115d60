"""Which settings of moving KV a worker refuses before it starts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefill_worker.settings import PrefillSettings
from protocol.errors import SettingsError
from protocol.process.settings import load


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kv") as folder:
        yield Path(folder)


def _folder(value: object) -> str:
    argv = ["--model", "/models/tiny", "--kv-socket-folder", str(value)]
    return load(PrefillSettings, argv).kv_socket_folder


def test_a_folder_for_sockets_that_is_there_is_taken(short: Path) -> None:
    assert _folder(short) == str(short) and _folder("") == ""


def test_one_that_cannot_hold_them_is_refused_before_the_worker_starts(short: Path) -> None:
    file = short / "file"
    file.write_text("")
    for value in (short / "nowhere", file):
        with pytest.raises(SettingsError, match=f"kv_socket_folder: '{value}': must be a folder"):
            _folder(value)


@pytest.mark.parametrize("value", ["sockets", "/" + "x" * 64])
def test_a_path_that_no_socket_can_have_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="must be an absolute path of at most 64 bytes"):
        _folder(value)
