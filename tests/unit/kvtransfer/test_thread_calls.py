"""Calls that one thread makes for others."""

import select
from collections.abc import Iterator

import pytest

from kvtransfer.thread_calls import ThreadCalls


@pytest.fixture
def calls() -> Iterator[ThreadCalls]:
    calls = ThreadCalls()
    yield calls
    calls.close()


def ready(calls: ThreadCalls) -> set[int]:
    return set(select.select([calls.fileno()], [], [], 0)[0])


def test_calls_are_made_once_in_the_order_they_came(calls: ThreadCalls) -> None:
    made: list[str] = []
    calls.add(lambda: made.append("first"))
    calls.add(lambda: made.append("second"))
    assert made == []
    calls.make_all()
    calls.make_all()
    assert made == ["first", "second"]


def test_a_call_wakes_the_thread_until_it_has_seen_that(calls: ThreadCalls) -> None:
    assert not ready(calls)
    calls.add(lambda: None)
    calls.clear_wake(set())
    assert ready(calls)
    calls.clear_wake(ready(calls))
    assert not ready(calls)


def test_a_call_asked_for_by_another_is_made_in_the_same_round(calls: ThreadCalls) -> None:
    made: list[str] = []
    calls.add(lambda: calls.add(lambda: made.append("inner")))
    calls.make_all()
    assert made == ["inner"]


def test_a_call_that_fails_leaves_those_after_it(calls: ThreadCalls) -> None:
    made: list[str] = []

    def fail() -> None:
        raise RuntimeError("a slip")

    calls.add(fail)
    calls.add(lambda: made.append("after"))
    with pytest.raises(RuntimeError):
        calls.make_all()
    calls.make_all()
    assert made == ["after"]


def test_what_was_added_before_the_refusal_is_made_and_nothing_after(calls: ThreadCalls) -> None:
    made: list[str] = []
    calls.add(lambda: made.append("before"))
    calls.refuse_more()
    assert calls.is_closing and ready(calls)
    calls.add(lambda: made.append("after"))
    calls.make_all()
    assert made == ["before"]
