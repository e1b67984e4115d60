"""What a sink pulls from a source's prefix cache: under a lease as any other, and never in vain."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from support.eventually import eventually
from support.fetching import TimedEnds
from support.outcomes import error_of
from support.prefixes import Shelf, prefix_of, pull
from support.transfer import COMPAT, LAYOUT, Borrower, Lender

from kvtransfer.endings import Aborted, Landed, Lost
from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.transport_names import DEVICE_TRANSPORTS
from protocol.errors import NotLent, PeerLost
from protocol.ids import Epoch


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(blocks=(7, 3, 9, 5))


@pytest.fixture
def lender(ends: TimedEnds, shelf: Shelf) -> Iterator[Lender]:
    with closing(Lender(ends=ends, on_borrow=shelf.hear)) as lender:
        yield lender


def moved(lender: Lender, borrower: Borrower, pairs: dict[int, int]) -> bool:
    """Of the borrower's blocks, whether they hold what the lender's do."""
    return all(
        bytes(borrower.memory.block(ours)) == bytes(lender.memory.block(theirs))
        for ours, theirs in pairs.items()
    )


def reasons(ends: TimedEnds) -> list[str]:
    return [end.reason for end in ends.told.values()]


def test_blocks_of_a_cached_prefix_come_and_their_lease_is_given_back(
    lender: Lender, borrower: Borrower, ends: TimedEnds, shelf: Shelf
) -> None:
    end = pull(borrower, prefix_of(lender), (20, 21, 22, 23)).end
    assert isinstance(end, Landed) and end.num_blocks == 4
    assert moved(lender, borrower, {20: 7, 21: 3, 22: 9, 23: 5})
    eventually(lambda: reasons(ends) == ["released"])
    assert list(shelf.asked[0].token_ids) == list(range(4 * LAYOUT.block_tokens))


def test_only_what_the_own_cache_lacks_comes(lender: Lender, borrower: Borrower) -> None:
    end = pull(borrower, prefix_of(lender), (30, 31), first_block=1).end
    assert isinstance(end, Landed) and end.num_blocks == 2
    assert moved(lender, borrower, {30: 3, 31: 9})


def test_a_source_that_has_less_lends_what_it_has(lender: Lender, borrower: Borrower) -> None:
    end = pull(borrower, prefix_of(lender), range(20, 30)).end
    assert isinstance(end, Landed) and end.num_blocks == 4
    assert not any(borrower.memory.block(24)), "nobody wrote where nothing was lent"


def test_a_source_without_it_says_so(lender: Lender, borrower: Borrower, shelf: Shelf) -> None:
    shelf.blocks = ()
    assert isinstance(error_of(pull(borrower, prefix_of(lender), (20,))), NotLent)
    assert lender.source.num_leases == 0


def test_what_is_here_already_is_not_lent_for_nothing(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    assert isinstance(error_of(pull(borrower, prefix_of(lender), (20,), first_block=4)), NotLent)
    eventually(lambda: reasons(ends) == ["released"])


def test_a_source_that_lends_nothing_and_another_model_are_declined(
    ends: TimedEnds, borrower: Borrower, shelf: Shelf
) -> None:
    with closing(Lender(ends=ends)) as closed:
        assert not closed.source.lends_prefixes
        assert isinstance(error_of(pull(borrower, prefix_of(closed), (20,))), NotLent)
    with closing(Lender(ends=ends, on_borrow=shelf.hear, compat=COMPAT + "b")) as other:
        assert isinstance(error_of(pull(borrower, prefix_of(other), (20,))), NotLent)
        assert not shelf.asked


def test_another_incarnation_is_asked_for_nothing(
    lender: Lender, borrower: Borrower, shelf: Shelf
) -> None:
    old = prefix_of(lender, epoch=Epoch(lender.epoch ^ 1))
    assert isinstance(error_of(pull(borrower, old, (20,))), PeerLost)
    assert not shelf.asked


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_what_is_lent_after_the_end_is_given_back_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds, shelf: Shelf, how: str
) -> None:
    shelf.waits = True
    outcome = pull(borrower, prefix_of(lender), (20,), deadline_s=10.0 if how != "late" else 0.2)
    eventually(lambda: shelf.asked)
    if how == "cancelled":
        borrower.sink.cancel(outcome.fetch, reason="the client is gone")
        assert outcome.end == Aborted("the client is gone")
    else:
        assert isinstance(outcome.end, Lost)
    shelf.answer(shelf.asked[0])
    eventually(lambda: reasons(ends) == ["released"])
    assert not any(borrower.memory.block(20))


def test_a_loan_to_a_sink_that_is_gone_ends_at_once(
    lender: Lender, borrower: Borrower, ends: TimedEnds, shelf: Shelf
) -> None:
    shelf.waits = True
    pull(borrower, prefix_of(lender), (20,))
    eventually(lambda: shelf.asked)
    borrower.sink.close()
    shelf.answer(shelf.asked[0])
    eventually(lambda: reasons(ends) == ["expired"])


def test_a_block_that_another_request_was_given_is_not_read(
    lender: Lender, borrower: Borrower, shelf: Shelf, ends: TimedEnds
) -> None:
    """Its generation is no longer the loan's."""

    def overwrite(asked: AskedLoan) -> None:
        lender.memory.generations[3] += 1

    shelf.after = overwrite
    outcome = pull(borrower, prefix_of(lender), (20, 21, 22, 23))
    assert "another request" in str(error_of(outcome))
    eventually(lambda: reasons(ends) == ["failed"])


def test_pulls_and_hand_overs_share_a_link(lender: Lender, borrower: Borrower) -> None:
    ticket = lender.lend([11])
    fetched = borrower.fetch(ticket, [])
    pulled = pull(borrower, prefix_of(lender), (20, 21))
    assert isinstance(pulled.end, Landed)
    lender.write_all(ticket)
    assert isinstance(fetched.end, Landed)


def test_a_flood_of_asks_is_bounded(lender: Lender, borrower: Borrower, shelf: Shelf) -> None:
    """Nobody answers them: what is beyond the bound is declined."""
    shelf.waits = True
    outcomes = [pull(borrower, prefix_of(lender), (20,)) for _ in range(300)]
    eventually(lambda: sum(outcome.ended for outcome in outcomes) == 300 - 256)
    assert len(shelf.asked) == 256
    assert all(isinstance(error_of(o), NotLent) for o in outcomes if o.ended)
    for outcome in outcomes:
        borrower.sink.cancel(outcome.fetch)
    eventually(lambda: borrower.sink.num_fetches == 0)


@pytest.mark.parametrize("transport", DEVICE_TRANSPORTS)
def test_prefixes_move_between_pools_on_devices(transport: str, shelf: Shelf) -> None:
    with (
        closing(Lender(transports=DEVICE_TRANSPORTS, on_borrow=shelf.hear)) as lender,
        closing(Borrower(transports=(transport,), allow_fallback=False)) as borrower,
    ):
        end = pull(borrower, prefix_of(lender), (20, 21, 22), first_block=1).end
        assert isinstance(end, Landed) and end.num_blocks == 3
        assert moved(lender, borrower, {20: 3, 21: 9, 22: 5})
