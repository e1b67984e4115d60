"""What the doctor writes, for people and for scripts."""

import json

import pytest
from support.doctor_facts import BEST, OTHER, SHM, TCP

from controlplane.doctor.facts import Finding, note, ok
from controlplane.doctor.planes import plane_reports
from controlplane.doctor.report import Report, Way, as_json, as_text
from controlplane.doctor.trial import Outcome, Unusable

FINDINGS = (ok("clock", "tsc"), note("cores", "1 of 8", "Give it two."))
BROKEN = Unusable(transport="tcp", why="timed out")


def report(*outcomes: Outcome, findings: tuple[Finding, ...] = FINDINGS) -> Report:
    here = Way(source="one", fetcher="one", planes=plane_reports(BEST, BEST, [SHM, TCP]))
    there = Way(source="two", fetcher="one", planes=plane_reports(BEST, OTHER, outcomes))
    return Report(facts=BEST, peer=OTHER, findings=findings, ways=(here, there))


def test_each_finding_is_a_line_and_a_remedy_another() -> None:
    lines = as_text(report(TCP)).splitlines()
    assert "  ok    clock  tsc" in lines
    at = lines.index("  note  cores  1 of 8")
    assert lines[at + 1].strip() == "-> Give it two."


def test_each_way_says_what_would_move_kv() -> None:
    text = as_text(report(TCP))
    assert "KV between workers on one: would move by shm" in text
    assert "KV from two to one: would move by tcp" in text
    assert "nothing can move it" in as_text(report(BROKEN))


def test_scripts_get_everything_as_json() -> None:
    answer = json.loads(as_json(report(TCP)))
    assert answer["ok"] is True
    assert [finding["remedy"] for finding in answer["findings"]] == ["", "Give it two."]
    assert [way["uses"] for way in answer["ways"]] == ["shm", "tcp"]
    assert answer["peer"]["host"] == "two"


@pytest.mark.parametrize(("outcome", "moves"), [(TCP, True), (BROKEN, False)])
def test_one_way_without_a_transport_is_a_failure(outcome: Outcome, moves: bool) -> None:
    assert report(outcome).can_move is moves
