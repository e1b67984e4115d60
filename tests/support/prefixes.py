"""Prefixes lent and pulled through the public interface of sources and sinks, without engines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from support.fetching import TimedOutcome
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender

from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.source.source import Source
from protocol.blocks import block_hashes
from protocol.ids import BlockHash, Epoch, WorkerId
from protocol.messages import PrefixSource, Ticket

SEED = BlockHash(bytes(range(16)))


@dataclass
class Shelf:
    """A prefix cache that has these blocks of whatever it is asked for; answers at once, or when
    told to."""

    blocks: Sequence[int] | None
    """None: those that the tokens say, which are numbers in order: block b has the b-th of them."""
    num_blocks: int = 180
    """Of the pool."""
    waits: bool = False
    after: Callable[[AskedLoan], None] = lambda asked: None
    """Called after each answer, before the sink has heard it."""
    asked: list[AskedLoan] = field(default_factory=list)
    source: Source | None = None

    @staticmethod
    def hashes(token_ids: Sequence[int]) -> list[BlockHash]:
        return block_hashes(token_ids, block_tokens=LAYOUT.block_tokens, seed=SEED)

    def hear(self, source: Source, asked: AskedLoan) -> None:
        self.source = source
        self.asked.append(asked)
        if not self.waits:
            self.answer(asked)

    def answer(self, asked: AskedLoan) -> None:
        assert self.source is not None
        most = len(asked.token_ids) // LAYOUT.block_tokens
        named = _named(asked.token_ids, num_blocks=self.num_blocks)
        blocks = named if self.blocks is None else list(self.blocks)[:most]
        if blocks:
            num_tokens = len(blocks) * LAYOUT.block_tokens
            last = self.hashes(asked.token_ids)[len(blocks) - 1]
            self.source.lend(asked.id, block_ids=blocks, num_tokens=num_tokens, last=last)
        else:
            self.source.refuse_loan(asked.id, "nothing is cached")
        self.after(asked)


def _named(token_ids: Sequence[int], *, num_blocks: int) -> list[int]:
    """As far as the tokens are in order."""
    first, rest = divmod(token_ids[0] if token_ids else 1, LAYOUT.block_tokens)
    num_right = next(
        (n for n, token in enumerate(token_ids) if token != token_ids[0] + n), len(token_ids)
    )
    end = first + num_right // LAYOUT.block_tokens
    return list(range(first, end)) if not rest and end <= num_blocks else []


def prefix_of(lender: Lender, *, epoch: Epoch | None = None) -> PrefixSource:
    source = lender.source
    return PrefixSource(
        worker=WorkerId("prefill-0"),
        epoch=lender.epoch if epoch is None else epoch,
        address=source.address,
        num_tokens=0,
    )


def prefix_at(ticket: Ticket) -> PrefixSource:
    """Of whoever lends by this ticket, for what else it has."""
    return PrefixSource(
        worker=ticket.worker, epoch=ticket.epoch, address=ticket.address, num_tokens=0
    )


def pull(
    borrower: Borrower,
    source: PrefixSource,
    block_ids: Sequence[int],
    *,
    first_block: int = 0,
    first_token: int = 0,
    deadline_s: float = WITHIN_S,
) -> TimedOutcome:
    """Pull blocks from `first_block` on into these, of tokens that are numbers in order."""
    outcome = TimedOutcome()
    num_tokens = (first_block + len(block_ids)) * borrower.layout.block_tokens
    tokens = range(first_token, first_token + num_tokens)
    outcome.fetch = borrower.sink.pull(
        source, seed=SEED, token_ids=tokens, hashes=Shelf.hashes(tokens), first_block=first_block,
        block_ids=block_ids, deadline_s=deadline_s, on_end=outcome.tell,
    )  # fmt: skip
    return outcome
