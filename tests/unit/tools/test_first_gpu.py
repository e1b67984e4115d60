"""The first hour on a GPU without one: parts that fail, deadlines, the table, kernels packed."""

import json
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.row import Row, table, tell, told
from tools.first_gpu import __main__ as command
from tools.first_gpu import kernel_cache
from tools.first_gpu.gpu_tests import gpu_test_files
from tools.first_gpu.part import Outcome, Part, run_part
from tools.first_gpu.stage import STAGE_S, Stage, is_passed, rows_of, run_stage, write_table

FAST = Row(part="decode_b1", result="4.4 ms", limit="3.5 ms", share=0.8, passed=True)
SLOW = Row(part="prefill", result="90 ms", limit="38 ms", share=0.42, passed=False)


def part(name: str = "one", code: str = "", *, within_s: float = 60.0) -> Part:
    return Part(name=name, arguments=("-c", code), within_s=within_s)


def outcome(name: str, *rows: Row, failure: str = "") -> Outcome:
    return Outcome(part=part(name), rows=rows, failure=failure, took_s=1.0)


def test_a_table_has_a_line_a_row_and_says_no_aloud() -> None:
    head, fast, slow = table([FAST, SLOW]).splitlines()
    assert head.split() == ["part", "result", "limit", "share", "passed"]
    assert fast.split() == ["decode_b1", "4.4", "ms", "3.5", "ms", "80%", "yes"]
    assert slow.endswith("42%    NO") and head.index("limit") == slow.index("38 ms")


def test_rows_are_found_among_what_else_a_process_says(capsys: pytest.CaptureFixture[str]) -> None:
    tell(FAST)
    print("row 4 of a table of somebody's")
    said = capsys.readouterr().out
    assert list(told(said.splitlines()[0] + "\nnoise\n")) == [FAST]


def test_a_part_is_a_process_whose_rows_are_read_and_whose_output_is_kept(tmp_path: Path) -> None:
    code = f"print('noise'); print({'row ' + json.dumps({'part': 'a', 'result': 'b'})!r})"
    done = run_part(part(code=code), logs=tmp_path, within_s=60)
    assert done.rows == (Row(part="a", result="b"),) and not done.failure
    assert (tmp_path / "one.log").read_text().startswith("noise")


def test_a_part_that_raises_says_its_last_line(tmp_path: Path) -> None:
    done = run_part(part(code="raise RuntimeError('no memory')"), logs=tmp_path, within_s=60)
    assert done.failure == "exit code 1: RuntimeError: no memory"


def test_a_part_that_is_late_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    done = run_part(part(code=code, within_s=5.0), logs=tmp_path, within_s=60)
    assert done.failure == "not done within 5 s"
    child, until_s = int((tmp_path / "one.log").read_text()), time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < until_s, "a child of a part lives on"


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


class Runs:
    """Parts that take their time of a clock of ours."""

    def __init__(self, took_s: Mapping[str, float]) -> None:
        self.now_s, self.took_s = 100.0, took_s
        self.given_s: dict[str, float] = {}

    def clock(self) -> float:
        return self.now_s

    def run(self, one: Part, *, logs: Path, within_s: float) -> Outcome:
        self.given_s[one.name] = within_s
        self.now_s += self.took_s[one.name] if within_s else 0.0
        return outcome(one.name, FAST, failure="broken" if one.name == "breaks" else "")


def test_parts_after_one_that_failed_run(tmp_path: Path) -> None:
    runs = Runs({"breaks": 1, "works": 1})
    stage = Stage(name="check", waves=[[part("breaks")], [part("works")]])
    done = run_stage(stage, tmp_path, run=runs.run, clock=runs.clock)
    assert [one.failure for one in done] == ["broken", ""]
    assert not is_passed(done)


def test_a_stage_ends_within_its_time_whatever_its_parts_would_take(tmp_path: Path) -> None:
    runs = Runs({"a": 200, "b": 368, "c": 50})
    stage = Stage(name="tune", waves=[[part("a")], [part("b")], [part("c")]])
    run_stage(stage, tmp_path, run=runs.run, clock=runs.clock)
    assert STAGE_S < 600
    assert runs.given_s == {"a": STAGE_S, "b": STAGE_S - 200, "c": 0.0}


def test_a_part_without_time_is_a_failure_and_no_process(tmp_path: Path) -> None:
    done = run_part(part(code="raise SystemExit(3)"), logs=tmp_path, within_s=0.0)
    assert done.failure == "no time was left" and not (tmp_path / "one.log").exists()


def test_who_fails_or_says_nothing_has_a_row_once(tmp_path: Path) -> None:
    done = [outcome("fails", FAST, failure="exit code 1"), outcome("mute"), outcome("slow", SLOW)]
    assert [(row.part, row.passed) for row in rows_of(done)] == [
        ("decode_b1", True), ("fails", False), ("mute", False), ("prefill", False),
    ]  # fmt: skip
    said_itself = outcome("slow", SLOW, failure="exit code 1")
    assert list(rows_of([said_itself])) == [SLOW]


def test_a_table_is_left_for_people_and_for_programs(tmp_path: Path) -> None:
    stage = Stage(name="serve", waves=[])
    text = write_table(stage, [outcome("one", FAST)], tmp_path)
    assert (tmp_path / "serve.txt").read_text() == text + "\n"
    kept = json.loads((tmp_path / "serve.json").read_text())
    assert kept["rows"][0]["share"] == 0.8 and kept["took_s"] == {"one": 1.0}


@pytest.mark.parametrize("name", command.STAGES)
@pytest.mark.parametrize("toy", [True, False])
def test_every_stage_names_its_parts_once(name: str, toy: bool, tmp_path: Path) -> None:
    """Logs and seconds are kept by that name; and modules are of this tree."""
    stage = command.STAGES[name](tmp_path, toy=toy)
    parts = [one for wave in stage.waves for one in wave]
    assert stage.name == name and len({one.name for one in parts}) == len(parts) > 0
    for one in parts:
        module = one.arguments[one.arguments.index("-m") + 1].replace(".", "/")
        assert Path(f"{module}.py").exists() or Path(f"{module}/__main__.py").exists()


def test_kernels_are_taken_up_from_the_first_file_there(tmp_path: Path) -> None:
    compiled, file, empty = tmp_path / "compiled", tmp_path / "kernels.tar.gz", tmp_path / "new"
    (compiled / "ABC").mkdir(parents=True)
    (compiled / "ABC" / "kernel.cubin").write_bytes(b"code")
    assert kernel_cache.pack(compiled, file) == 1
    assert kernel_cache.unpack([tmp_path / "none", file], empty) == file
    assert (empty / "ABC" / "kernel.cubin").read_bytes() == b"code"
    assert kernel_cache.unpack([file], empty) is None, "kernels that are there stay"


def test_kernels_that_lead_out_of_their_folder_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.tar"
    (tmp_path / "code").write_text("x")
    with tarfile.open(file, "w") as archive:
        archive.add(tmp_path / "code", arcname="../outside")
    with pytest.raises(tarfile.FilterError):
        kernel_cache.unpack([file], tmp_path / "new")
    assert not (tmp_path / "outside").exists()


def test_without_kernels_there_is_no_file(tmp_path: Path) -> None:
    assert kernel_cache.pack(tmp_path / "none", tmp_path / "kernels.tar.gz") == 0
    assert not (tmp_path / "kernels.tar.gz").exists()


def test_files_with_tests_for_a_gpu_are_found_by_their_text(tmp_path: Path) -> None:
    mark = "@pytest.mark." + "gpu"  # apart: this file has none
    (tmp_path / "test_marked.py").write_text(f"import openai_of_nobody\n{mark}\ndef test(): ...\n")
    (tmp_path / "test_other.py").write_text("def test(): ...\n")
    assert [file.name for file in gpu_test_files(tmp_path)] == ["test_marked.py"]
