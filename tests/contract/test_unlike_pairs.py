"""Two workers that do not fit each other: refused at once with the reason, and both live on."""

from contextlib import closing

import msgspec
import pytest
from support.fetching import TimedEnds, fetch
from support.outcomes import ended, error_of, lands, untouched
from support.transfer import LAYOUT, Borrower, Lender

from kvtransfer.endings import Landed
from protocol.errors import LayoutMismatch


def test_a_pair_that_cannot_be_mapped_is_refused_and_both_live_on(
    lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    ticket = lender.lend(range(4))
    other = msgspec.structs.replace(LAYOUT, num_kv_heads=3)
    foreign = msgspec.structs.replace(ticket, layout=other)
    assert isinstance(error_of(fetch(borrower, foreign, range(4))), LayoutMismatch)
    assert ended(ends, ticket) == "released"
    assert lands(lender, borrower)


def test_a_slower_path_is_named_with_its_reason_or_refused(
    lender: Lender,
) -> None:
    """Also nixl#791 and vllm#26382."""
    with closing(Lender(transports=("tcp",))) as far, closing(Borrower()) as borrower:
        ticket = far.lend(range(2))
        far.write_all(ticket)
        end = fetch(borrower, ticket, range(2)).end
        assert isinstance(end, Landed) and end.transport == "tcp"
        assert "not shm" in end.transport_why
        with closing(Borrower(allow_fallback=False)) as strict:
            ticket = far.lend(range(2))
            assert "no fallback allowed" in str(error_of(fetch(strict, ticket, range(2))))


def test_an_impossible_pair_is_an_error_with_its_reason_not_a_hang(
    lender: Lender, borrower: Borrower
) -> None:
    """And vllm#37333, #42898, #42179."""
    ticket = lender.lend(range(4))
    foreign = msgspec.structs.replace(
        ticket, layout=msgspec.structs.replace(LAYOUT, dtype="bfloat16")
    )
    error = error_of(fetch(borrower, foreign, range(4), deadline_s=300.0))
    assert isinstance(error, LayoutMismatch) and not error.retryable and str(error)


def test_another_model_is_refused_without_harm_to_either_server(
    transport: str, lender: Lender, borrower: Borrower, ends: TimedEnds
) -> None:
    with closing(Borrower(transports=(transport,), compat="another attention layout")) as other:
        ticket = lender.lend(range(4))
        lender.write_all(ticket)
        assert isinstance(error_of(fetch(other, ticket, range(4))), LayoutMismatch)
        assert untouched(other) and ended(ends, ticket) == "released"
    assert lands(lender, borrower)


@pytest.mark.parametrize(
    "wrong",
    [{"address": ""}, {"address": "tcp://nowhere:1"}, {"lease": 0}, {"epoch": 0}, {"compat": ""}],
)
def test_wrong_transfer_parameters_lose_one_request_not_the_worker(
    lender: Lender, borrower: Borrower, wrong: dict[str, object]
) -> None:
    ticket = msgspec.structs.replace(lender.lend(range(4)), **wrong)
    assert str(error_of(fetch(borrower, ticket, range(4))))
    with pytest.raises(ValueError, match=r"index|indices"):
        fetch(borrower, ticket, [1], indices=[4])
    assert untouched(borrower) and lands(lender, borrower)
