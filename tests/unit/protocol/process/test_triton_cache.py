"""Which folder Triton loads machine code from, and what of it is not loaded."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.process.triton_cache import VARIABLE, use_own_triton_cache

STRANGER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "baton"


def kernel_in(folder: Path) -> Path:
    """A kernel as Triton keeps it: a folder of its own, with files."""
    entry = folder / "K2XW"
    entry.mkdir()
    (entry / "copy.cubin").write_bytes(b"code")
    return entry


def test_it_lies_beside_the_other_kernels_for_this_user_alone(root: Path) -> None:
    folder = use_own_triton_cache()
    assert folder == root / "triton" and os.environ[VARIABLE] == str(folder)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, folder)] == [0o700, 0o700]


def test_what_is_ours_stays(root: Path) -> None:
    entry = kernel_in(use_own_triton_cache())
    assert use_own_triton_cache() == entry.parent
    assert (entry / "copy.cubin").read_bytes() == b"code"


def test_what_is_compiled_under_a_group_s_umask_stays() -> None:
    before = os.umask(0o002)
    try:
        entry = kernel_in(use_own_triton_cache())
        use_own_triton_cache()
        assert entry.exists()
    finally:
        os.umask(before)


def test_an_operator_s_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "asked"))
    assert use_own_triton_cache() == tmp_path / "asked"


def test_kernels_of_a_user_whose_group_may_write_are_found_again() -> None:
    """A umask of 002, as many systems give it."""
    before = os.umask(0o002)
    try:
        entry = kernel_in(use_own_triton_cache())
        assert use_own_triton_cache() == entry.parent and entry.exists()
    finally:
        os.umask(before)


def of_another(entry: Path) -> None:
    os.chown(entry / "copy.cubin", STRANGER, STRANGER)


def folder_of_another(entry: Path) -> None:
    os.chown(entry, STRANGER, STRANGER)


def written_by_others(entry: Path) -> None:
    (entry / "copy.cubin").chmod(0o666)


def in_an_open_folder(entry: Path) -> None:
    entry.chmod(0o777)


def a_link(entry: Path) -> None:
    code = entry / "copy.cubin"
    code.unlink()
    code.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(of_another, marks=needs_root),
        pytest.param(folder_of_another, marks=needs_root),
        written_by_others,
        in_an_open_folder,
        a_link,
    ],
)
def test_what_others_may_have_written_is_never_loaded(
    change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    entry = kernel_in(use_own_triton_cache())
    change(entry)
    assert use_own_triton_cache() == entry.parent and not entry.exists()
    assert "a compiled kernel is not loaded" in caplog.text


def _strangers(root: Path) -> None:
    (root / "triton").mkdir(parents=True)
    os.chown(root / "triton", STRANGER, STRANGER)


def _a_file(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "triton").write_text("")


@pytest.mark.parametrize("make", [pytest.param(_strangers, marks=needs_root), _a_file])
def test_a_folder_that_cannot_be_ours_is_left_for_one_of_the_process_s_own(
    make: Callable[[Path], None], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(root)
    folder = use_own_triton_cache()
    assert folder.parent != root and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "compiled for this process alone" in caplog.text
    shutil.rmtree(folder)
