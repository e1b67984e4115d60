"""Whole fetches through the public interface, with the time at which each ended.

The one place where the fault tests name the arguments of `Sink.fetch`.
"""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

from support.transfer import WITHIN_S, Borrower, Outcome

from kvtransfer.endings import FetchEnd, LeaseEnd
from protocol.ids import LeaseId
from protocol.messages import Ticket


@dataclass
class TimedOutcome(Outcome):
    """An outcome that knows when it was told, on this process's clock."""

    told_s: float = 0.0

    def tell(self, end: FetchEnd) -> None:
        self.told_s = self.told_s or time.monotonic()
        super().tell(end)


class TimedEnds(queue.Queue[LeaseEnd]):
    """The ends of a lender's leases: each once, and when it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[LeaseId, LeaseEnd] = {}
        self.told_s: dict[LeaseId, float] = {}
        self.twice: list[LeaseId] = []

    def put(self, item: LeaseEnd, block: bool = True, timeout: float | None = None) -> None:
        if item.lease in self.told:
            self.twice.append(item.lease)
        self.told_s[item.lease] = time.monotonic()
        self.told[item.lease] = item
        super().put(item, block, timeout)


def fetch(
    borrower: Borrower, ticket: Ticket, block_ids: Sequence[int], *,
    indices: Sequence[int] | None = None, deadline_s: float = WITHIN_S,
) -> TimedOutcome:  # fmt: skip
    """Fetch the lease's blocks, the first ones unless `indices` says which, into `block_ids`."""
    outcome = TimedOutcome()
    indices = range(len(block_ids)) if indices is None else indices
    outcome.fetch = borrower.sink.fetch(
        ticket=ticket, indices=indices, block_ids=block_ids, deadline_s=deadline_s,
        on_end=outcome.tell,
    )  # fmt: skip
    return outcome
