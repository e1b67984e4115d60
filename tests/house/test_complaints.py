"""What docs/complaints.md says is shown by tests that exist, and no number is left out."""

import re

from support.source_tree import ROOT, definitions, modules_of_tests

PAGE = (ROOT / "docs/complaints.md").read_text()
TITLES = re.compile(r"^## (.*)$", re.MULTILINE)
NUMBERED = {
    "Transfer libraries": range(1, 18),
    "Engines with separate prefill and decode": range(1, 21),
    "Outputs held to a grammar": range(11, 19),
    "Tool calls": range(19, 23),
}
"""Section -> the complaints it must speak of, as the field notes number them."""


def test_every_test_that_is_named_exists() -> None:
    there = {
        name.rpartition(".")[2]
        for module in modules_of_tests()
        for name, _ in definitions(module.tree)
    }
    assert set(re.findall(r"`(test_\w+)`", PAGE)) - there == set()


def test_no_complaint_is_left_out() -> None:
    _, *parts = TITLES.split(PAGE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for title, numbers in NUMBERED.items():
        spoken_of = re.findall(r"(?:^\| |\*\*)(\d+)(?: \||\*\*)", sections[title], re.MULTILINE)
        assert {int(number) for number in spoken_of} == set(numbers), title


def test_every_line_of_a_numbered_table_names_a_test_or_another_line() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", PAGE, re.MULTILINE)
    assert rows
    assert [row for row in rows if "`test_" not in row and "as above" not in row] == []
