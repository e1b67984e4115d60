"""Calls that one thread makes for others."""

from kvtransfer.thread_calls import ThreadCalls


def test_calls_are_made_once_in_the_order_they_came() -> None:
    made: list[str] = []
    calls = ThreadCalls(lambda: None)
    calls.add(lambda: made.append("first"))
    calls.add(lambda: made.append("second"))
    assert made == []
    calls.make_all()
    calls.make_all()
    assert made == ["first", "second"]


def test_each_call_wakes_the_thread_after_it_is_there() -> None:
    made: list[str] = []
    calls = ThreadCalls(lambda: calls.make_all())
    calls.add(lambda: made.append("call"))
    assert made == ["call"]


def test_a_call_asked_for_by_another_is_made_in_the_same_round() -> None:
    made: list[str] = []
    calls = ThreadCalls(lambda: None)
    calls.add(lambda: calls.add(lambda: made.append("inner")))
    calls.make_all()
    assert made == ["inner"]


def test_a_call_that_fails_leaves_those_after_it() -> None:
    made: list[str] = []
    calls = ThreadCalls(lambda: None)

    def fail() -> None:
        raise RuntimeError("a slip")

    calls.add(fail)
    calls.add(lambda: made.append("after"))
    try:
        calls.make_all()
    except RuntimeError:
        calls.make_all()
    assert made == ["after"]
