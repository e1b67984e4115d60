import logging

import pytest

from protocol.errors import StoreError
from protocol.store.contact import REMIND_S, Contact

AWAY = StoreError("Redis: connection refused")


def test_who_has_never_been_answered_waits_and_says_so_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = iter((0.0, 1.0, REMIND_S - 1, REMIND_S, REMIND_S + 1))
    contact = Contact("r:6379", clock=lambda: next(clock))
    assert contact.waiting() is None  # nobody has asked
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            contact.note(AWAY)
        assert contact.waiting() == "waits for Redis at r:6379"
        contact.note()
        contact.note()
    assert contact.waiting() is None
    waits = "waits for Redis at r:6379"
    assert [record.message for record in caplog.records] == [waits, waits, "Redis connected"]


def test_who_has_been_answered_waits_no_more_and_says_what_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contact = Contact("r:6379")
    with caplog.at_level(logging.INFO):
        for error in (None, None, AWAY, AWAY, None):
            contact.note(error)
            assert contact.is_up == (error is None)
            assert contact.waiting() is None
    connected, lost = "Redis connected", "Redis lost"
    assert [record.message for record in caplog.records] == [connected, lost, connected]
