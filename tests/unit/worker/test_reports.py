"""When a router is told of a load that others changed; how often, by how many report to it."""

from collections.abc import Iterator, Mapping

import msgspec
from support.words import beat

from protocol.ids import RouterId
from protocol.messages import Beat
from worker.reported.reports import BURST, REPORT_COST_S, REPORT_SHARE, LoadReports

A, B = RouterId("a"), RouterId("b")
FEW = {A: 1, B: 1}


def saying(*, running: int = 0, num_free: int = 8) -> Beat:
    said = beat(running=running)
    return msgspec.structs.replace(said, blocks=msgspec.structs.replace(said.blocks, free=num_free))


def told(*, received: Mapping[RouterId, int], running: int = 0, num_free: int = 8) -> LoadReports:
    reports = LoadReports()
    reports.note_told(saying(running=running, num_free=num_free), received)
    return reports


def test_a_router_is_told_of_what_another_asked_for_and_not_of_its_own() -> None:
    reports = told(received={A: 0, B: 0})
    due = reports.due(saying(running=1), {A: 1, B: 0}, workers=FEW, now=1.0)
    assert due == [B]


def test_it_is_told_once() -> None:
    reports, now = told(received={A: 0, B: 0}), {A: 1, B: 0}
    assert reports.due(saying(running=1), now, workers=FEW, now=1.0) == [B]
    assert reports.due(saying(running=1), now, workers=FEW, now=2.0) == []


def test_room_that_came_back_is_told_to_all() -> None:
    reports = told(received={A: 1, B: 0}, running=2, num_free=3)
    same = {A: 1, B: 0}
    assert reports.due(saying(running=1, num_free=3), same, workers=FEW, now=1.0) == [A, B]
    assert reports.due(saying(running=1, num_free=5), same, workers=FEW, now=2.0) == [A, B]


def test_less_room_is_no_news_of_itself() -> None:
    """A sequence grows at every step."""
    reports = told(received={A: 1, B: 0}, running=1)
    assert reports.due(saying(running=1, num_free=2), {A: 1, B: 0}, workers=FEW, now=1.0) == []


def test_one_router_alone_hears_no_report_of_what_it_asks_for() -> None:
    reports = told(received={A: 0})
    for number in range(1, 50):
        busy = saying(running=number, num_free=8)
        assert reports.due(busy, {A: number}, workers=FEW, now=number / 10) == []


def arrivals(reports: LoadReports, *, num_workers: int, seconds: float) -> Iterator[RouterId]:
    """To whom reports go while another's requests come all the time."""
    workers = {A: num_workers, B: num_workers}
    for tick in range(int(seconds * 40)):
        received = {A: tick + 1, B: 0}
        yield from reports.due(saying(running=1), received, workers=workers, now=tick / 40)


def test_the_more_workers_report_to_a_router_the_less_each_one_does() -> None:
    per_s = len(list(arrivals(told(received={A: 0, B: 0}), num_workers=1000, seconds=100.0))) / 100
    of_the_core = 1000 * per_s * REPORT_COST_S
    assert 0.9 * REPORT_SHARE <= of_the_core <= 1.2 * REPORT_SHARE


def test_after_a_silence_the_first_ones_are_told_at_once_even_among_a_thousand() -> None:
    reports = told(received={A: 0, B: 0})
    burst = arrivals(reports, num_workers=1000, seconds=0.2)
    assert len(list(burst)) == BURST


def test_who_has_left_is_forgotten() -> None:
    reports = told(received={A: 0, B: 0})
    reports.note_told(saying(), {B: 0})
    assert reports.due(saying(running=1), {B: 0}, workers={B: 1}, now=1.0) == []
