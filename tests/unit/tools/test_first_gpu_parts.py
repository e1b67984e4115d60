"""Parts of a stage as processes: what they say, when they are late, what they leave behind."""

import json
import os
import time
from pathlib import Path

from bench.row import Row
from tools.first_gpu import wheels
from tools.first_gpu.part import Part, run_part


def part(code: str, *, within_s: float = 60.0) -> Part:
    return Part(name="one", arguments=("-c", code), within_s=within_s)


def test_a_part_is_a_process_whose_rows_are_read_and_whose_output_is_kept(tmp_path: Path) -> None:
    code = f"print('noise'); print({'row ' + json.dumps({'part': 'a', 'result': 'b'})!r})"
    done = run_part(part(code), logs=tmp_path, within_s=60)
    assert done.rows == (Row(part="a", result="b"),) and not done.failure
    assert (tmp_path / "one.log").read_text().startswith("noise")


def test_a_part_that_raises_says_its_last_line(tmp_path: Path) -> None:
    done = run_part(part("raise RuntimeError('no memory')"), logs=tmp_path, within_s=60)
    assert done.failure == "exit code 1: RuntimeError: no memory"


def test_a_part_that_is_late_is_ended(tmp_path: Path) -> None:
    late = part("import signal; signal.pause()", within_s=0.1)
    assert run_part(late, logs=tmp_path, within_s=60).failure == "not done within 0 s"
    assert run_part(part("input()"), logs=tmp_path, within_s=60).failure, "its input is empty"


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "left = [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "print(subprocess.Popen(left).pid, flush=True)"
    )
    assert not run_part(part(code), logs=tmp_path, within_s=60).failure
    left, until_s = int((tmp_path / "one.log").read_text()), time.monotonic() + 10
    while _lives(left):
        assert time.monotonic() < until_s, "what a part left behind lives on"


def _lives(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def test_a_part_has_what_its_environment_adds(tmp_path: Path) -> None:
    one = Part(
        name="one", arguments=("-c", "import os; print(os.environ['ADDED'], os.environ['PATH'])"),
        within_s=60, environment={"ADDED": "yes"},
    )  # fmt: skip
    run_part(one, logs=tmp_path, within_s=60)
    assert (tmp_path / "one.log").read_text() == f"yes {os.environ['PATH']}\n"


def test_a_part_without_time_is_a_failure_and_no_process(tmp_path: Path) -> None:
    done = run_part(part("raise SystemExit(3)"), logs=tmp_path, within_s=0.0)
    assert done.failure == "no time was left" and not (tmp_path / "one.log").exists()


def test_a_download_that_fails_says_what_pip_said(tmp_path: Path) -> None:
    said = wheels.download(["no spec of anything"], tmp_path, python="3.12")
    assert "no spec of anything" in said
