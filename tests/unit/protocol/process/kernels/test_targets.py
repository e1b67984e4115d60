"""Which of the prebuilt kernels a processor runs."""

from pathlib import Path

import pytest

from protocol.process.kernels import targets
from protocol.process.kernels.targets import TARGETS, features_here, targets_of

HASWELL = ["fpu", "sse2", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"]
SKYLAKE_X = [*HASWELL, *["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]]
COOPER_LAKE = [*SKYLAKE_X, "avx512_bf16"]


@pytest.mark.parametrize(
    ("machine", "features", "names"),
    [
        ("x86_64", COOPER_LAKE, ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3"]),
        ("x86_64", SKYLAKE_X, ["x86-64-v4", "x86-64-v3"]),
        ("x86_64", [*HASWELL, "avx512_bf16"], ["x86-64-v3"]),
        ("x86_64", HASWELL, ["x86-64-v3"]),
        ("x86_64", ["sse2"], []),
        ("x86_64", [], []),
        ("aarch64", ["asimd"], ["aarch64"]),
        ("ppc64le", [], []),
    ],
)
def test_a_processor_runs_what_it_has_the_instructions_for_the_fastest_first(
    machine: str, features: list[str], names: list[str]
) -> None:
    assert [each.name for each in targets_of(machine, features)] == names


def test_a_feature_counts_where_every_core_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor: 0\nflags\t: fpu avx avx2\n\nprocessor: 1\nflags\t: fpu avx\n")
    monkeypatch.setattr(targets, "CPUINFO", told)
    assert features_here() == {"fpu", "avx"}
    told.unlink()
    assert features_here() == frozenset()


def test_no_two_targets_have_a_name() -> None:
    assert len({each.name for each in TARGETS}) == len(TARGETS)
