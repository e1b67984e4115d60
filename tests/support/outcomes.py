"""What became of a fetch, as tests of lenders and borrowers ask for it."""

from collections.abc import Sequence

from support.eventually import eventually
from support.fetching import TimedEnds, TimedOutcome, fetch
from support.transfer import Borrower, Lender

from kvtransfer.endings import Landed, Lost
from protocol.errors import TransferError
from protocol.messages import Ticket


def error_of(outcome: TimedOutcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


def lands(lender: Lender, borrower: Borrower, blocks: range = range(40, 44)) -> bool:
    """A fetch of these blocks into the same ones goes through with the right bytes."""
    ticket = lender.lend(blocks)
    lender.write_all(ticket)
    end = fetch(borrower, ticket, blocks).end
    return isinstance(end, Landed) and same_bytes(lender, borrower, blocks)


def same_bytes(lender: Lender, borrower: Borrower, blocks: Sequence[int]) -> bool:
    ours, theirs = borrower.memory, lender.memory
    return all(ours.block(block) == theirs.block(block) for block in blocks)


def untouched(borrower: Borrower) -> bool:
    return not any(borrower.memory.blocks)


def ended(ends: TimedEnds, ticket: Ticket) -> str:
    """How the lease ended, once it has."""
    eventually(lambda: ticket.lease in ends.told)
    return ends.told[ticket.lease].reason
