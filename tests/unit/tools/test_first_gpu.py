"""The first hour on a GPU without one: parts that fail, deadlines, the table, kernels packed."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.row import Row, table, tell, told
from tools.first_gpu import __main__ as command
from tools.first_gpu import kernel_cache
from tools.first_gpu.gpu_tests import gpu_test_files
from tools.first_gpu.part import Outcome, Part
from tools.first_gpu.stage import STAGE_S, Stage, is_passed, rows_of, run_stage, write_table

FAST = Row(part="decode_b1", result="4.4 ms", limit="3.5 ms", share=0.8, passed=True)
SLOW = Row(part="prefill", result="90 ms", limit="38 ms", share=0.42, passed=False)


def part(name: str) -> Part:
    return Part(name=name, arguments=(), within_s=60.0)


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
