"""Which compiled kernels are loaded, and which are built again. The compiler is the machine's."""

import logging
import os
import stat
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path

import pytest

from protocol.process.kernels.c_kernels import DIGEST, Kernels, NoKernels, compiler

STRANGER = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler")
pytestmark = needs_compiler


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Of one function, `answer`, over an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text("int answer(void) { return 42; }\n")
    return Kernels(name="answer", folder=folder, flags=("-shared", "-fPIC"))


def answer_of(library: CDLL) -> int:
    answer: int = library.answer()
    return answer


def foreign(tmp_path: Path) -> bytes:
    """A library that loads, and gives another answer."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "answer.c").write_text("int answer(void) { return 666; }\n")
    other = Kernels(name="foreign", folder=folder, flags=("-shared", "-fPIC"))
    other.load()
    return other.library().read_bytes()


def put(library: Path, text: bytes) -> None:
    """In place of what lies there, as a new file: what is mapped stays as it is."""
    library.unlink()
    library.write_bytes(text)


def cut(library: Path, _: Path) -> None:
    put(library, library.read_bytes()[:-100])


def emptied(library: Path, _: Path) -> None:
    put(library, b"")


def exchanged(library: Path, tmp_path: Path) -> None:
    put(library, foreign(tmp_path))


def without_digest(library: Path, tmp_path: Path) -> None:
    exchanged(library, tmp_path)
    library.with_name(library.name + DIGEST).unlink()


def digest_of_another(library: Path, tmp_path: Path) -> None:
    """A digest that is right, of the same user, and of another library."""
    exchanged(library, tmp_path)
    (other,) = library.parent.glob(f"foreign-*{DIGEST}")
    library.with_name(library.name + DIGEST).write_bytes(other.read_bytes())


def linked(library: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.so"
    elsewhere.write_bytes(library.read_bytes())
    library.unlink()
    library.symlink_to(elsewhere)


def writable_by_group(library: Path, _: Path) -> None:
    library.chmod(0o775)


def writable_by_all(library: Path, _: Path) -> None:
    library.chmod(0o757)


def digest_writable(library: Path, _: Path) -> None:
    library.with_name(library.name + DIGEST).chmod(0o666)


def of_a_stranger(library: Path, _: Path) -> None:
    os.chown(library, STRANGER, STRANGER)


def digest_of_a_stranger(library: Path, _: Path) -> None:
    os.chown(library.with_name(library.name + DIGEST), STRANGER, STRANGER)


@pytest.mark.parametrize(
    "spoil",
    [
        cut, emptied, exchanged, without_digest, digest_of_another, linked, writable_by_group,
        writable_by_all, digest_writable,
        pytest.param(of_a_stranger, marks=needs_root),
        pytest.param(digest_of_a_stranger, marks=needs_root),
    ],
)  # fmt: skip
def test_a_library_that_is_not_as_it_was_built_is_built_again(
    kernels: Kernels, tmp_path: Path, spoil: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    assert answer_of(kernels.load()) == 42
    library = kernels.library()
    built = library.read_bytes()
    spoil(library, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert answer_of(kernels.load()) == 42
    assert [record.message for record in caplog.records] == ["kernels not loaded"]
    assert library.read_bytes() == built
    assert not library.is_symlink()
    found = library.stat()
    assert found.st_uid == os.geteuid()
    assert not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    caplog.clear()
    kernels.load()
    assert not caplog.records


def test_one_that_is_as_it_was_built_is_loaded_without_a_compiler(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.load()
    library = kernels.library()
    monkeypatch.setattr(Kernels, "library", lambda self: library)  # its name has the compiler's
    monkeypatch.setattr("protocol.process.kernels.c_kernels.compiler", lambda: None)
    assert answer_of(kernels.load()) == 42


def test_it_may_be_written_by_nobody_else_whatever_the_umask(kernels: Kernels) -> None:
    before = os.umask(0)
    try:
        kernels.load()
    finally:
        os.umask(before)
    library = kernels.library()
    for path in (library.parent, library, library.with_name(library.name + DIGEST)):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def folder_of_a_stranger(cache: Path) -> None:
    (cache / "baton").mkdir(parents=True)
    os.chown(cache / "baton", STRANGER, STRANGER)


def cache_of_a_stranger(cache: Path) -> None:
    cache.mkdir()
    os.chown(cache, STRANGER, STRANGER)


def folder_is_a_link(cache: Path) -> None:
    (cache.parent / "elsewhere").mkdir()
    cache.mkdir()
    (cache / "baton").symlink_to(cache.parent / "elsewhere")


def folder_is_a_file(cache: Path) -> None:
    cache.mkdir()
    (cache / "baton").write_text("")


def cache_is_a_file(cache: Path) -> None:
    cache.write_text("")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(folder_of_a_stranger, marks=needs_root),
        pytest.param(cache_of_a_stranger, marks=needs_root),
        folder_is_a_link, folder_is_a_file, cache_is_a_file,
    ],
)  # fmt: skip
def test_a_cache_of_another_is_not_used(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    spoil(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert answer_of(kernels.load()) == 42
    assert [record.message for record in caplog.records] == ["kernels built for this process alone"]
    assert list((tmp_path / "tmp").iterdir()) == [], "what was built is gone"
    assert not list((tmp_path / "elsewhere").glob("*"))


def test_a_user_without_a_home_has_kernels(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert answer_of(kernels.load()) == 42


def test_what_is_built_right_and_cannot_be_loaded_is_no_crash(kernels: Kernels) -> None:
    (kernels.folder / "answer.c").write_text(
        "int nowhere(void);\nint answer(void) { return nowhere(); }\n"
        "__attribute__((constructor)) static void start(void) { nowhere(); }\n"
    )
    with pytest.raises(NoKernels, match="cannot load"):
        kernels.load()
