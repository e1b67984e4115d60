"""What must hold for the repository as a whole."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 500
OUR_PACKAGES = (
    *("protocol", "engine", "kvtransfer", "worker"),
    *("router", "prefill_worker", "decode_worker", "controlplane"),
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home/\w+|root|Users/\w+)/[\w.]")


def _tracked() -> list[Path]:
    """Every file of the checkout that git would keep; those under it where git is absent."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file()]


def _sources() -> list[Path]:
    return [path for path in _tracked() if path.suffix == ".py"]


def test_no_python_file_is_longer_than_five_hundred_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in _sources()
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert long == {}


def test_every_top_level_name_is_ours_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    others = {
        name: set(owners.get(name, ())) - {PROJECT["project"]["name"]} for name in OUR_PACKAGES
    }
    assert {name: found for name, found in others.items() if found} == {}


def test_every_package_is_installed_by_the_wheel_and_layered() -> None:
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in found} == set(OUR_PACKAGES)
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == set(OUR_PACKAGES)


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert newest.group(1) == PROJECT["project"]["version"]


def test_the_commands_of_the_readme_exist() -> None:
    readme = ROOT / "README.md"
    makefile = (ROOT / "Makefile").read_text()
    commands = set(re.findall(r"^\$? ?make (\w+)", readme.read_text(), re.M))
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    assert {"demo", "test"} <= commands
    assert commands <= targets


def test_no_file_names_a_place_on_someones_machine() -> None:
    named = []
    for path in _tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # weights and the like
        named += [f"{path.relative_to(ROOT)}: {match.group()}" for match in _matches(text)]
    assert named == []


def _matches(text: str) -> list[re.Match[str]]:
    return list(MACHINE_PATH.finditer(text))
