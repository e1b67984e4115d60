"""Prefixes that this worker lends from its prefix cache to peers that fetch them.

Asked on the source's thread, looked up on the engine's, ended on the source's. What is lent is held
by the engine until the lease has ended.
"""

import logging
import threading
from functools import partial

from engine.commands import PrefixToLend, SpareToHold
from engine.kvcache.loans import LentPrefix, LoanId
from engine.loop import Engine
from kvtransfer.endings import LeaseEnd
from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.source.source import Source
from protocol.errors import CapacityError
from protocol.ids import LeaseId
from protocol.process.metrics import TransferMetrics
from worker.transfers.canary_seed import CANARY
from worker.transfers.lease_metrics import LeaseMetrics

log = logging.getLogger(__name__)


class PrefixLoans:
    """Those that have not ended."""

    def __init__(
        self,
        engine: Engine,
        *,
        block_tokens: int,
        metrics: TransferMetrics,
        lease_metrics: LeaseMetrics,
    ) -> None:
        self._engine = engine
        self._block_tokens = block_tokens
        self._metrics = metrics
        self._lease_metrics = lease_metrics
        self._lock = threading.Lock()
        """A lease may end on the source's thread before the engine's has noted it."""
        self._lent: dict[LeaseId, LoanId] = {}
        self._canaries: set[LoanId] = set()
        """Of those asked for that are no prefix: they count nowhere."""

    def __len__(self) -> int:
        return len(self._lent)

    def answer(self, source: Source, asked: AskedLoan) -> None:
        """A sink asks for a prefix. Returns at once: the source hears the answer later."""
        if asked.seed == CANARY:
            self._canaries.add(LoanId(asked.id))
            tell = partial(self._lend_spare, source, asked)
            self._engine.hold_spare(SpareToHold(loan=LoanId(asked.id), tell=tell))
            return
        self._engine.lend(
            PrefixToLend(
                loan=LoanId(asked.id),
                seed=asked.seed,
                token_ids=asked.token_ids,
                tell=partial(self._lend, source, asked),
            )
        )

    def ended(self, end: LeaseEnd) -> bool:
        """False: the lease is on no loan of the prefix cache."""
        with self._lock:
            loan = self._lent.pop(end.lease, None)
        if loan is None:
            return False
        self._engine.end_loan(loan)
        if loan in self._canaries:
            self._canaries.discard(loan)
            return True
        self._metrics.loans.set(len(self._lent))
        self._lease_metrics.ended(end)
        told = {"reason": end.reason, "detail": end.detail, "blocks": end.num_blocks}
        log.info("loan ended", extra={**told, "peer": end.peer, "transport": end.transport})
        return True

    def _lend_spare(self, source: Source, asked: AskedLoan, block: int | None) -> None:
        """On the engine's thread: whatever the block holds, the peer wants to see it come."""
        if block is None:
            self._canaries.discard(LoanId(asked.id))
            source.refuse_loan(asked.id, "it has no block to spare")
        else:
            self._lend(source, asked, LentPrefix(block_ids=(block,), last=CANARY))

    def _lend(self, source: Source, asked: AskedLoan, lent: LentPrefix) -> None:
        """On the engine's thread, which holds these blocks from now on."""
        blocks = lent.block_ids
        if not blocks:
            self._metrics.loans_asked.labels("nothing").inc()
            source.refuse_loan(asked.id, "it has none of it cached, or lends no more now")
            return
        num_tokens = len(blocks) * self._block_tokens
        try:
            with self._lock:
                lease = source.lend(
                    asked.id, block_ids=blocks, num_tokens=num_tokens, last=lent.last
                )
                self._lent[lease] = LoanId(asked.id)
        except CapacityError as error:
            self._metrics.loans_asked.labels("nothing").inc()
            self._engine.end_loan(LoanId(asked.id))
            self._canaries.discard(LoanId(asked.id))
            source.refuse_loan(asked.id, str(error))
            return
        if LoanId(asked.id) in self._canaries:
            return
        self._metrics.loans_asked.labels("lent").inc()
        self._metrics.loans.set(len(self._lent))
