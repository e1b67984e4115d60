"""Where a measurement is written, and which commit it says, on a machine that keeps neither."""

import json
from pathlib import Path

import pytest

from bench.record import RESULTS, commit, record, results_folder


def test_results_go_into_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path / "out" / "results"))
    monkeypatch.setenv("BENCH_COMMIT", "v1-7-gabc")
    record("gpu", conditions={"part": "one"}, results={"us": 3.0})
    (line,) = (tmp_path / "out" / "results" / "gpu.jsonl").read_text().splitlines()
    assert json.loads(line)["machine"]["commit"] == "v1-7-gabc"


def test_results_stay_in_the_tree_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_RESULTS", raising=False)
    assert results_folder() == RESULTS


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert commit() == "unknown"
