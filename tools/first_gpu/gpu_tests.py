"""Runs tests and counts them; says which files have tests that need a GPU.

    python -m tools.first_gpu.gpu_tests NAME [--may-skip] ARGUMENT ...      # pytest's

Which files those are is read from their text, for to import the others takes packages that a
machine with a GPU may lack. Tells one row: how many passed. Ends with 1 where one failed, or where
none ran (--may-skip: where there is none).
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.row import Row, tell
from tools.python_path import ROOT

MARKS = ("mark.gpu", "import DRIVERS", "DRIVERS,", "DRIVERS)")
"""In the text of a file with such a test: the mark, or the parameters that carry it."""

MAY_SKIP = "--may-skip"


def gpu_test_files(tests: Path = ROOT / "tests") -> list[Path]:
    """Sorted."""
    return [
        file
        for file in sorted(tests.rglob("test_*.py"))
        if any(mark in file.read_text(encoding="utf-8") for mark in MARKS)
    ]


class Count:
    """A plugin of pytest: endings of tests, by their word."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.endings["failed"] += 1
        elif report.skipped:
            self.endings["skipped"] += 1
        elif report.when == "call":
            self.endings["passed"] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.endings["failed"] += 1


def run(name: str, arguments: Sequence[str], *, may_skip: bool = False) -> int:
    count, enough = Count(), ("passed", "skipped") if may_skip else ("passed",)
    code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[count])
    endings = count.endings
    passed = code == 0 and any(endings[word] for word in enough) and not endings["failed"]
    text = ", ".join(f"{number} {word}" for word, number in sorted(endings.items()))
    tell(Row(part=name, result=text or f"no test ran (pytest: {int(code)})", passed=passed))
    return 0 if passed else 1


def main() -> int:
    name, *arguments = sys.argv[1:]
    asked = [argument for argument in arguments if argument != MAY_SKIP]
    return run(name, asked, may_skip=MAY_SKIP in arguments)


if __name__ == "__main__":
    sys.exit(main())
