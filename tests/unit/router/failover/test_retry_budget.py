"""How many attempts may be repeated: times are values."""

from router.failover.retry_budget import MIN_RETRIES, RetryBudget


def num_taken(budget: RetryBudget, *, num_open: int, now: float, of: int = 10_000) -> int:
    return sum(budget.take_retry(num_open=num_open, now=now) for _ in range(of))


def test_all_that_is_open_may_be_lost_at_once() -> None:
    assert num_taken(RetryBudget(), num_open=500, now=1.0) == 500


def test_a_router_with_few_requests_has_some_retries_nevertheless() -> None:
    assert num_taken(RetryBudget(), num_open=1, now=1.0) == MIN_RETRIES


def test_what_was_taken_comes_back_with_the_requests_that_come() -> None:
    budget = RetryBudget(share=0.2)
    num_taken(budget, num_open=100, now=1.0)
    for _ in range(50):
        budget.note_begun()
    assert num_taken(budget, num_open=100, now=1.0) == 10


def test_what_was_taken_comes_back_in_ten_seconds_and_no_more_than_that() -> None:
    budget = RetryBudget()
    num_taken(budget, num_open=100, now=1.0)
    assert num_taken(budget, num_open=100, now=3.0) == 20
    assert num_taken(budget, num_open=100, now=1_000.0) == 100


def test_where_every_attempt_fails_the_fleet_is_asked_for_little_more() -> None:
    """1,000 requests a second for ten seconds, each of which would be tried three times again."""
    budget, num_retries = RetryBudget(share=0.2), 0
    for number in range(10_000):
        budget.note_begun()
        num_retries += num_taken(budget, num_open=100, now=number / 1_000, of=3)
    assert num_retries <= 0.2 * 10_000 + 100 + 100


def test_a_clock_that_stands_gives_nothing() -> None:
    budget = RetryBudget(share=0.0)
    num_taken(budget, num_open=20, now=5.0)
    assert not budget.take_retry(num_open=20, now=5.0)
