"""Whether a request's worker stands still: facts in, a reason or None out."""

from dataclasses import replace

from protocol.ids import WorkerId
from router.failover.stall import BUSY_FACTOR, FACTOR, LastHeard, StallLimits, Wait, find_stall
from router.failover.stalled_workers import AVOIDED_S, MIN_STALLS, StalledWorkers

D, OTHER = WorkerId("decode-0"), WorkerId("decode-1")
LIMITS = StallLimits(silent_s=2.0, first_token_s=10.0, next_token_s=5.0)
FIRST = Wait(
    worker=D,
    awaited="first_token",
    since=100.0,
    expected_s=0.1,
    is_streaming=False,
    is_compiled=False,
    num_stalls=0,
)
NEXT = replace(FIRST, awaited="next_token", is_streaming=True, expected_s=0.02)


def stalls_at(
    wait: Wait, now: float, *, heard_at: float | None = None, advanced_at: float = 0.0
) -> bool:
    """`heard_at` None: it beats."""
    heard = LastHeard(heard_at=now if heard_at is None else heard_at, advanced_at=advanced_at)
    return find_stall(wait, heard, limits=LIMITS, now=now) is not None


def test_a_worker_that_gets_nothing_done_has_as_long_as_is_set() -> None:
    assert not stalls_at(FIRST, 109.9) and stalls_at(FIRST, 110.1)
    assert not stalls_at(NEXT, 104.9) and stalls_at(NEXT, 105.1)


def test_what_was_predicted_to_take_long_may() -> None:
    long = replace(FIRST, expected_s=30.0)
    assert not stalls_at(long, 100.0 + 29.9 * FACTOR) and stalls_at(long, 100.1 + 30 * FACTOR)


def test_a_busy_worker_has_longer() -> None:
    now = 100.0 + 9.9 * BUSY_FACTOR
    assert not stalls_at(FIRST, now, advanced_at=now - 1.0)
    now = 100.1 + 10.0 * BUSY_FACTOR
    assert stalls_at(FIRST, now, advanced_at=now - 1.0)


def test_a_grammar_has_longer_for_it_is_compiled() -> None:
    assert not stalls_at(replace(FIRST, is_compiled=True), 139.0)


def test_a_worker_that_says_nothing_at_all_is_left_sooner() -> None:
    assert not stalls_at(NEXT, 101.9, heard_at=99.8)
    assert stalls_at(NEXT, 102.1, heard_at=99.9)
    assert not stalls_at(NEXT, 102.1, heard_at=100.5)


def test_each_stall_makes_a_request_wait_twice_as_long() -> None:
    again = replace(NEXT, num_stalls=2)
    assert not stalls_at(again, 119.9) and stalls_at(again, 120.1)
    assert not stalls_at(again, 107.9, heard_at=99.0) and stalls_at(again, 108.1, heard_at=99.0)


def test_the_reason_names_the_worker_and_what_it_owes() -> None:
    beating = LastHeard(heard_at=120.0, advanced_at=0.0)
    why = find_stall(FIRST, beating, limits=LIMITS, now=120.0)
    assert why == "decode-0 owes the first token since 20.0 s, 0.10 s expected"
    quiet = LastHeard(heard_at=115.0, advanced_at=0.0)
    why = find_stall(FIRST, quiet, limits=LIMITS, now=120.0)
    assert why == "decode-0 has said nothing for 5.0 s"


def test_a_worker_is_avoided_when_several_stalled_there_until_it_gets_something_done() -> None:
    stalled, beating = StalledWorkers(silent_s=2.0), LastHeard(heard_at=100.0, advanced_at=50.0)
    for number in range(MIN_STALLS):
        assert D not in stalled.avoided
        stalled.note_stall(D, now=100.0 + number / 10)
        stalled.update({D: beating, OTHER: beating}, now=100.0 + number / 10)
    assert stalled.avoided == {D}
    stalled.update({D: replace(beating, heard_at=102.0, advanced_at=101.0)}, now=102.0)
    assert not stalled.avoided


def test_a_worker_that_does_nothing_is_tried_again_after_a_while() -> None:
    stalled = StalledWorkers(silent_s=2.0)
    for _ in range(MIN_STALLS):
        stalled.note_stall(D, now=100.0)
    now = 100.1 + AVOIDED_S
    stalled.update({D: LastHeard(heard_at=now, advanced_at=50.0)}, now=now)
    assert not stalled.avoided


def test_a_silent_worker_is_avoided_at_once() -> None:
    stalled = StalledWorkers(silent_s=2.0)
    stalled.update({D: LastHeard(heard_at=97.0, advanced_at=97.0)}, now=100.0)
    assert stalled.avoided == {D}
    stalled.update({D: LastHeard(heard_at=100.0, advanced_at=97.0)}, now=100.0)
    assert not stalled.avoided
