"""How fast a queue gets shorter."""

import pytest

from router.admission.drain_rate import DrainRate


def test_no_rate_is_made_of_no_waiting() -> None:
    rate = DrainRate()
    rate.note_turn(1_000, now=0.0)
    assert rate.seconds_for(1, now=100.0) is None
    rate.note_waiting(True, now=100.0)
    assert rate.seconds_for(1, now=100.1) is None


def test_a_steady_rate_is_found() -> None:
    rate = DrainRate()
    rate.note_waiting(True, now=0.0)
    for tenth in range(1, 300):
        rate.note_turn(50, now=tenth / 10)
    assert rate.seconds_for(1_000, now=29.95) == pytest.approx(2.0, rel=0.02)


def test_time_in_which_nobody_waits_is_not_counted() -> None:
    rate = DrainRate()
    for start in (0.0, 1_000.0, 5_000.0):
        rate.note_waiting(True, now=start)
        for tenth in range(1, 51):
            rate.note_turn(50, now=start + tenth / 10)
        rate.note_waiting(False, now=start + 5.0)
    assert rate.seconds_for(1_000, now=9_000.0) == pytest.approx(2.0, rel=0.05)


def test_a_slower_fleet_shows() -> None:
    rate = DrainRate()
    rate.note_waiting(True, now=0.0)
    for second in range(1, 100):
        rate.note_turn(1_000 if second < 50 else 100, now=float(second))
    assert rate.seconds_for(1_000, now=99.0) == pytest.approx(10.0, rel=0.2)
