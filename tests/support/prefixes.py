"""Prefixes lent and pulled through the public interface of sources and sinks, without engines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from support.fetching import TimedOutcome
from support.transfer import LAYOUT, WITHIN_S, Borrower, Lender

from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.source.source import Source
from protocol.ids import BlockHash, Epoch, WorkerId
from protocol.messages import PrefixSource

SEED = BlockHash(bytes(range(16)))


@dataclass
class Shelf:
    """A prefix cache that has these blocks of whatever it is asked for; answers at once, or when
    told to."""

    blocks: Sequence[int]
    waits: bool = False
    after: Callable[[AskedLoan], None] = lambda asked: None
    """Called after each answer, before the sink has heard it."""
    asked: list[AskedLoan] = field(default_factory=list)
    source: Source | None = None

    def hear(self, source: Source, asked: AskedLoan) -> None:
        self.source = source
        self.asked.append(asked)
        if not self.waits:
            self.answer(asked)

    def answer(self, asked: AskedLoan) -> None:
        assert self.source is not None
        most = len(asked.token_ids) // LAYOUT.block_tokens
        blocks = list(self.blocks)[:most]
        if blocks:
            num_tokens = len(blocks) * LAYOUT.block_tokens
            self.source.lend(asked.id, block_ids=blocks, num_tokens=num_tokens)
        else:
            self.source.refuse_loan(asked.id, "nothing is cached")
        self.after(asked)


def prefix_of(lender: Lender, *, epoch: Epoch | None = None) -> PrefixSource:
    source = lender.source
    return PrefixSource(
        worker=WorkerId("prefill-0"),
        epoch=lender.epoch if epoch is None else epoch,
        address=source.address,
        num_tokens=0,
    )


def pull(
    borrower: Borrower,
    source: PrefixSource,
    block_ids: Sequence[int],
    *,
    first_block: int = 0,
    deadline_s: float = WITHIN_S,
) -> TimedOutcome:
    """Pull blocks from `first_block` on into these."""
    outcome = TimedOutcome()
    num_tokens = (first_block + len(block_ids)) * borrower.layout.block_tokens
    outcome.fetch = borrower.sink.pull(
        source, seed=SEED, token_ids=range(num_tokens), first_block=first_block,
        block_ids=block_ids, deadline_s=deadline_s, on_end=outcome.tell,
    )  # fmt: skip
    return outcome
