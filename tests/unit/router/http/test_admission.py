import pytest

from protocol.errors import CapacityError
from router.http.admission import Stock


def stock(size: int, **more: int) -> Stock:
    return Stock(size, what="requests in flight", retry_after_s=2.5, **more)


def test_what_was_taken_is_given_back_whatever_happens() -> None:
    seats = stock(4)
    with pytest.raises(RuntimeError), seats.share("a") as share:
        share.widen(3)
        assert seats.num_held == 3
        raise RuntimeError
    assert seats.num_held == 0


def test_an_empty_share_keeps_nobody_out() -> None:
    seats = stock(1)
    with seats.share("a"), seats.share("b") as second:
        second.widen(1)


def test_nobody_gets_what_is_gone() -> None:
    seats = stock(1)
    with seats.share("a") as first, seats.share("b") as second:
        first.widen(1)
        with pytest.raises(CapacityError, match="1 of 1 requests in flight") as raised:
            second.widen(1)
    assert raised.value.retry_after_s == 2.5
    assert seats.num_held == 0


def test_a_share_that_cannot_widen_keeps_what_it_had() -> None:
    seats = stock(3)
    with seats.share("a") as share:
        share.widen(1)
        with pytest.raises(CapacityError):
            share.widen(4)
        assert seats.num_held == 1
    assert seats.num_held == 0


def test_one_client_leaves_something_to_the_others() -> None:
    seats = stock(4, client_size=3)
    with seats.share("a") as greedy, seats.share("a") as again, seats.share("b") as other:
        greedy.widen(2)
        with pytest.raises(CapacityError, match="your share"):
            again.widen(2)
        other.widen(2)
