"""The benchmark of KV transfer runs, moves the right bytes and says what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    *("case", "block_bytes", "total_bytes", "ours", "best_peer", "best_peer_name", "limit"),
    *("ratio_to_best_peer", "ratio_to_limit", "cpu_s_per_gb", "run"),
)

pytestmark = pytest.mark.system


def test_a_quick_run_gives_a_row_for_every_case_and_a_verdict_for_every_bar(tmp_path: Path) -> None:
    options = ["--quick", "--only", "baton", "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.kvtransfer", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "kvtransfer.jsonl").read_text().splitlines()]
    assert all(tuple(row)[: len(KEYS)] == KEYS for row in rows)
    assert {row["case"] for row in rows} == {"host", "tcp", "latency"}
    assert [row["ours_failed"] for row in rows] == [""] * len(rows)
    assert all(row["ours"] > 0 and row["best_peer"] is None for row in rows)
    assert len([x for x in done.stdout.splitlines() if x.startswith(("met ", "MISSED "))]) == 20
