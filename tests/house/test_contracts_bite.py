"""Every import contract of pyproject.toml is broken once, in a copy, and import-linter says so."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.contract_breaks import Break, Contract, first_breaks
from support.source_tree import ROOT

from tools.import_graph import module_files

pytest.importorskip("importlinter", reason="import-linter comes with the `check` extra")

LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS: list[Contract] = LINTER["contracts"]
NAMES = [str(contract["name"]) for contract in CONTRACTS]
DEADLINE_S = 60.0
RUN = "from importlinter.cli import lint_imports_command as run; run()"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what import-linter reads."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file in module_files(ROOT).values():
        place = copy / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return copy


def test_the_copy_keeps_every_contract(checkout: Path) -> None:
    report = lint(checkout)
    assert [name for name in NAMES if f"{name} KEPT" not in report] == [], report


@pytest.mark.parametrize("contract", CONTRACTS, ids=NAMES)
def test_a_contract_bites(contract: Contract, checkout: Path) -> None:
    breaks = first_breaks(contract, module_files(checkout).keys())
    assert breaks, "no import would break it"
    with broken(checkout, breaks):
        report = lint(checkout)
    assert f"{contract['name']} BROKEN" in report, report


@contextmanager
def broken(checkout: Path, breaks: tuple[Break, ...]) -> Iterator[None]:
    """The checkout with these imports appended, while in the context."""
    files = [module_files(checkout)[one.importer] for one in breaks]
    texts = {file: file.read_text() for file in files}
    try:
        for one, file in zip(breaks, files, strict=True):
            file.write_text(f"{file.read_text()}\nimport {one.imported}\n")
        yield
    finally:
        for file, text in texts.items():
            file.write_text(text)


def lint(checkout: Path) -> str:
    """What import-linter prints, a contract's name and outcome on one line."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN, "--no-cache"],
        cwd=checkout,
        env=os.environ | {"COLUMNS": "500", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,  # a broken contract is what is asked for
    )
    return ran.stdout + ran.stderr
