"""Child processes find what is on PYTHONPATH alone, as packages are on a borrowed machine."""

import os
import re
from pathlib import Path

import pytest

from tools.python_path import ROOT, python_path

SET = re.compile(r'"PYTHONPATH": (?!python_path\(|path\b|os\.pathsep\.join\(map\(str, sys\.path)')


def test_what_the_path_had_comes_after_what_is_put_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/site")
    assert python_path("/a", Path("/b")) == os.pathsep.join(["/a", "/b", "/site"])


def test_without_a_path_of_ours_there_is_no_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty entry is the current folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert python_path("/a") == "/a"


def test_no_child_process_loses_the_path() -> None:
    """By the text of whatever starts one."""
    lost = [
        f"{file.relative_to(ROOT)}:{number}"
        for folder in ("tests", "bench", "tools", "controlplane")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if SET.search(line) and "os.pathsep.join(sys.path)" not in line and file != Path(__file__)
    ]
    assert not lost
