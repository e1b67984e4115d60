"""Kernels that an image brings: loaded without a compiler, the fastest that runs here."""

import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.process.kernels import c_kernels, targets
from protocol.process.kernels.c_kernels import DIGEST, PREBUILT, Kernels, NoKernels, compiler
from protocol.process.kernels.targets import TARGETS

STRANGER = 54_321
KIND_OF = """
int answer(void) {
#if defined(__AVX512BF16__)
    return 3;
#elif defined(__AVX512F__)
    return 2;
#elif defined(__AVX2__)
    return 1;
#else
    return 0;
#endif
}
"""
V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
pytestmark = [
    pytest.mark.skipif(compiler() is None, reason="no C compiler to build an image's kernels"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="three kinds of x86-64"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Built for every kind of this machine into an image's folder; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(PREBUILT, str(tmp_path / "image"))
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "answer.c").write_text(KIND_OF)
    kernels = Kernels(name="answer", folder=sources, flags=("-march=native", "-shared", "-fPIC"))
    (tmp_path / "image").mkdir(mode=0o755)
    found = compiler()
    assert found is not None
    for target in TARGETS:
        if target.machine == "x86_64":
            kernels.prebuild(target, tmp_path / "image", compiler=found)
    return kernels


@pytest.fixture
def no_compiler(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_kernels, "compiler", lambda: None)


def say(features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor that Linux tells of."""
    told = tmp_path / "cpuinfo"
    told.write_text(f"flags\t\t: {features}\n")
    monkeypatch.setattr(targets, "CPUINFO", told)


@pytest.mark.parametrize(("features", "kind"), [(f"{V4} avx512_bf16", 3), (V4, 2), (V3, 1)])
def test_the_fastest_that_runs_here_is_loaded_without_a_compiler(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None,
    features: str, kind: int,
) -> None:  # fmt: skip
    say(features, tmp_path, monkeypatch)
    assert kernels.load().answer() == kind
    assert not (tmp_path / "cache").exists(), "nothing is written"


def test_a_processor_that_the_image_knows_not_is_named(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None
) -> None:
    say("fpu sse2", tmp_path, monkeypatch)
    with pytest.raises(NoKernels, match=r"no C compiler .* none .* .older than x86-64-v3"):
        kernels.load()


def test_those_of_other_sources_are_not_loaded(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(V3, tmp_path, monkeypatch)
    (kernels.folder / "answer.c").write_text("int answer(void) { return 42; }\n")
    assert kernels.load().answer() == 42


def cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:-100])


def without_digest(library: Path) -> None:
    library.with_name(library.name + DIGEST).unlink()


def writable_by_all(library: Path) -> None:
    library.chmod(0o777)


def of_a_stranger(library: Path) -> None:
    os.chown(library, STRANGER, STRANGER)


@pytest.mark.parametrize(
    "spoil",
    [cut, without_digest, writable_by_all, pytest.param(of_a_stranger, marks=needs_root)],
)
def test_one_that_is_not_as_it_was_built_is_passed_over_for_the_next(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None,
    spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    say(V4, tmp_path, monkeypatch)
    (fastest,) = (tmp_path / "image").glob("answer-x86-64-v4-[!b]*.so")
    spoil(fastest)
    with caplog.at_level(logging.WARNING):
        assert kernels.load().answer() == 1
    assert [record.message for record in caplog.records] == ["kernels not loaded"]


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_that_others_may_write_is_none(
    kernels: Kernels, tmp_path: Path, no_compiler: None, mode: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "image").chmod(mode)
    with caplog.at_level(logging.WARNING), pytest.raises(NoKernels):
        kernels.load()
    assert "no kernels are taken from it" in caplog.messages


def test_a_folder_that_is_not_there_is_told_and_kernels_are_built(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(PREBUILT, str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING):
        kernels.load()
    assert caplog.messages == ["no kernels are taken from it"]
