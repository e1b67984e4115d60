"""What every lease of a source uses alike, handed on as one value."""

from collections.abc import Callable
from dataclasses import dataclass

from kvtransfer.endings import LeaseEnd
from kvtransfer.memory.pool import Pool
from kvtransfer.source.borrowing import AskedLoan
from protocol.ids import Epoch, WorkerId
from protocol.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMeans:
    """What a worker lends, and to whom it would."""

    memory: Pool
    layout: Layout
    worker: WorkerId
    epoch: Epoch
    compat: str
    lease_ttl_s: float
    on_lease_end: Callable[[LeaseEnd], None]
    on_borrow: Callable[[AskedLoan], None] | None
    clock: Callable[[], float]
