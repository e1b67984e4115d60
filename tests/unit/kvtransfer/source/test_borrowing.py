"""What sinks may ask of a prefix cache, and how much of it at once."""

from array import array

import pytest

from kvtransfer.messages import MAX_BORROWED_TOKENS, Borrow, FetchId, SessionId, to_source
from kvtransfer.source.borrowing import (
    MAX_ASKED,
    MAX_ASKED_TOKENS,
    AskedLoan,
    BorrowId,
    Borrowing,
)
from kvtransfer.source.sinks import ConnectedSink
from protocol.errors import WireError
from protocol.ids import WorkerId

SEED = b"s" * 16


def sink(number: int = 1) -> ConnectedSink:
    return ConnectedSink(bytes([number]), SessionId(number), WorkerId(f"decode-{number}"))


def borrow(*, fetch: int = 1, num_tokens: int = 8, compat: str = "same") -> Borrow:
    packed = array("I", range(num_tokens)).tobytes()
    return Borrow(fetch=fetch, compat=compat, seed=SEED, token_ids=packed)


@pytest.fixture
def asked() -> list[AskedLoan]:
    return []


@pytest.fixture
def borrowing(asked: list[AskedLoan]) -> Borrowing:
    return Borrowing(asked.append, compat="same")


def test_the_owner_is_asked_and_the_answer_finds_the_sink(
    borrowing: Borrowing, asked: list[AskedLoan]
) -> None:
    here = sink()
    assert borrowing.ask_owner(here, borrow(fetch=7)) is None
    assert (asked[0].seed, list(asked[0].token_ids)) == (SEED, list(range(8)))
    assert borrowing.pop_asked(asked[0].id) == (here, FetchId(7))
    assert borrowing.pop_asked(asked[0].id) is None, "answered twice"


def test_nobody_waits_who_is_gone(borrowing: Borrowing, asked: list[AskedLoan]) -> None:
    here, there = sink(1), sink(2)
    for one in (here, there):
        borrowing.ask_owner(one, borrow())
    borrowing.forget_sink(here)
    assert [borrowing.pop_asked(one.id) for one in asked] == [None, (there, FetchId(1))]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (borrow(compat="other"), "model"),
        (Borrow(fetch=1, compat="same", seed=SEED, token_ids=b"12345"), "u4"),
    ],
)
def test_what_cannot_be_lent_is_declined_at_once(
    borrowing: Borrowing, asked: list[AskedLoan], message: Borrow, why: str
) -> None:
    answer = borrowing.ask_owner(sink(), message)
    assert answer is not None and answer.num_tokens == 0 and why in answer.reason
    assert not asked


def test_a_source_without_a_cache_to_lend_from_declines() -> None:
    answer = Borrowing(None, compat="same").ask_owner(sink(), borrow())
    assert answer is not None and "nothing of its prefix cache" in answer.reason


def test_an_owner_that_fails_declines() -> None:
    def fail(asked: AskedLoan) -> None:
        raise RuntimeError("no engine")

    borrowing = Borrowing(fail, compat="same")
    answer = borrowing.ask_owner(sink(), borrow())
    assert answer is not None and answer.reason == "the source cannot look"
    assert borrowing.pop_asked(BorrowId(1)) is None


@pytest.mark.parametrize(
    ("num_tokens", "most"),
    [(1, MAX_ASKED), (MAX_BORROWED_TOKENS, MAX_ASKED_TOKENS // MAX_BORROWED_TOKENS)],
)
def test_a_flood_takes_bounded_memory(
    borrowing: Borrowing, asked: list[AskedLoan], num_tokens: int, most: int
) -> None:
    message = borrow(num_tokens=num_tokens)
    answers = [borrowing.ask_owner(sink(), message) for _ in range(most + 3)]
    assert [answer is None for answer in answers] == [True] * most + [False] * 3
    borrowing.pop_asked(asked[0].id)
    assert borrowing.ask_owner(sink(), message) is None, "an answer makes room"


def test_a_list_beyond_the_bound_is_no_message() -> None:
    packed = to_source.encode(borrow(num_tokens=MAX_BORROWED_TOKENS + 1))
    with pytest.raises(WireError):
        to_source.decode(packed)
