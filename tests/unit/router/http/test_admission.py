import pytest

from protocol.errors import CapacityError
from router.http.admission import Admission


def test_a_seat_is_given_back_whatever_happens() -> None:
    admission = Admission(max_in_flight=4, retry_after_s=1.0)
    with pytest.raises(RuntimeError), admission.enter() as seat:
        seat.widen(3)
        assert admission.num_in_flight == 3
        raise RuntimeError
    assert admission.num_in_flight == 0


def test_nobody_enters_a_full_router() -> None:
    admission = Admission(max_in_flight=1, retry_after_s=2.5)
    full = pytest.raises(CapacityError, match="1 of 1")
    with admission.enter(), full as raised, admission.enter():
        raise AssertionError("entered")
    assert raised.value.retry_after_s == 2.5
    assert admission.num_in_flight == 0


def test_a_seat_that_cannot_widen_keeps_only_what_it_had() -> None:
    admission = Admission(max_in_flight=3, retry_after_s=1.0)
    with admission.enter(), pytest.raises(CapacityError), admission.enter() as seat:
        seat.widen(3)
    assert admission.num_in_flight == 0
