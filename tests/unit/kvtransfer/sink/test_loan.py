"""What a fetch of a prefix asks to be lent, and what it makes of the answer."""

import numpy as np
import pytest
from support.transfer import COMPAT, LAYOUT

from kvtransfer.chunk import PIECE
from kvtransfer.messages import MAX_BORROWED_TOKENS, NO_LEASE, Borrow, FetchId, Lent, to_source
from kvtransfer.plan import plan
from kvtransfer.sink.fetch import End, Fetch, FetchStage, SendBorrow, SendCancel, SendFetch
from kvtransfer.sink.loan import accept_loan, borrow_message
from kvtransfer.sink.running_fetch import AskedPrefix, RunningFetch
from protocol.blocks import block_hashes
from protocol.errors import CorruptBlock, NotLent, TransferError, WireError
from protocol.ids import BlockHash, Epoch, LeaseId, WorkerId
from protocol.messages import Ticket

LEASE = LeaseId(5)
SEED = BlockHash(b"s" * 16)
TOKENS = LAYOUT.block_tokens
HASHES = tuple(block_hashes(range(4 * TOKENS), block_tokens=TOKENS, seed=SEED))


def asking(*, num_blocks: int = 4, first_block: int = 1) -> RunningFetch:
    """Of blocks 1 to 3 of a prefix, into blocks 11 to 13."""
    fetch = Fetch(fetch_id=FetchId(1), lease_id=None, pieces_S=np.empty(0, PIECE))
    ticket = Ticket(
        worker=WorkerId("p"), epoch=Epoch(1), lease=NO_LEASE, address="", layout=LAYOUT,
        compat=COMPAT, num_tokens=0,
    )  # fmt: skip
    prefix = AskedPrefix(
        seed=SEED, token_ids_T=np.arange(num_blocks * TOKENS, dtype=np.uint32),
        first_block=first_block, hashes=HASHES[:num_blocks],
        slots_S=np.arange(10 + first_block, 10 + num_blocks, dtype=np.uint32),
    )  # fmt: skip
    return RunningFetch(
        fetch, ticket, plan(LAYOUT, LAYOUT), lambda end: None, started_s=0.0, deadline_s=1.0,
        prefix=prefix,
    )  # fmt: skip


def lent(num_tokens: int, *, lease: LeaseId = LEASE) -> Lent:
    last = HASHES[num_tokens // TOKENS - 1] if 0 < num_tokens <= 4 * TOKENS else b""
    return Lent(fetch=1, lease=lease, num_tokens=num_tokens, last=last)


def test_it_asks_once_whatever_becomes_of_the_stream() -> None:
    fetch = asking().fetch
    assert fetch.start() == [SendBorrow()]
    assert fetch.start() == [] and fetch.stage is FetchStage.ASKING


def test_the_tokens_travel_as_they_are() -> None:
    message = borrow_message(asking())
    sent = to_source.decode(to_source.encode(message))
    assert isinstance(sent, Borrow) and sent == message
    assert np.frombuffer(sent.token_ids, "<u4").tolist() == list(range(4 * TOKENS))
    assert (sent.seed, sent.compat) == (SEED, COMPAT)


def test_it_fetches_of_what_is_lent_only_what_it_wants() -> None:
    running = asking()
    accept_loan(running, lent(3 * TOKENS), layout=LAYOUT)
    (step,) = running.fetch.start()
    assert isinstance(step, SendFetch)
    assert step.indices.tolist() == [1, 2] and step.slots.tolist() == [11, 12]
    assert running.ticket.lease == running.fetch.lease_id == LEASE
    assert running.ticket.num_tokens == 3 * TOKENS


@pytest.mark.parametrize("answer", [lent(0, lease=NO_LEASE), lent(0), lent(TOKENS)])
def test_nothing_of_use_is_no_loan(answer: Lent) -> None:
    running = asking()
    with pytest.raises(NotLent):
        accept_loan(running, answer, layout=LAYOUT)
    assert running.fetch.stage is FetchStage.ASKING


@pytest.mark.parametrize("num_tokens", [5 * TOKENS, 3 * TOKENS + 1, MAX_BORROWED_TOKENS])
def test_more_than_was_asked_for_is_no_answer(num_tokens: int) -> None:
    with pytest.raises(WireError, match="are lent of"):
        accept_loan(asking(), lent(num_tokens), layout=LAYOUT)


def test_blocks_of_other_tokens_are_not_taken() -> None:
    """As where what it asked for was spoilt on its way."""
    other = Lent(fetch=1, lease=LEASE, num_tokens=3 * TOKENS, last=HASHES[0])
    with pytest.raises(CorruptBlock, match="other tokens"):
        accept_loan(asking(), other, layout=LAYOUT)


def test_an_end_before_the_loan_has_nothing_to_give_back() -> None:
    assert asking().fetch.cancel("gone") == [End()]
    assert asking().fetch.fail(TransferError("late")) == [End()]


def test_an_end_after_the_loan_gives_it_back() -> None:
    running = asking()
    accept_loan(running, lent(3 * TOKENS), layout=LAYOUT)
    assert running.fetch.cancel("gone") == [SendCancel("gone"), End()]
