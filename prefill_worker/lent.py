"""The leases on this worker's blocks that have not ended, and what each one's end sets free.

`add` and `ended` are called on the threads of engine and source, the rest from any.
"""

import logging

from engine.batch import SequenceId
from engine.loop import Engine
from kvtransfer.endings import LeaseEnd
from protocol.ids import LeaseId
from protocol.process.metrics import TransferMetrics
from worker.requests import Key
from worker.transfers.lease_metrics import LeaseMetrics

log = logging.getLogger(__name__)


class LentLeases:
    """A lease may outlive its request; its end frees the blocks."""

    def __init__(
        self, engine: Engine, metrics: TransferMetrics, lease_metrics: LeaseMetrics
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._lease_metrics = lease_metrics
        self._lent: dict[LeaseId, tuple[SequenceId, Key]] = {}
        self._by_key: dict[Key, LeaseId] = {}

    def add(self, lease: LeaseId, sequence: SequenceId, key: Key) -> None:
        self._lent[lease] = (sequence, key)
        self._metrics.leases.set(len(self._lent))
        self._by_key[key] = lease

    def of_key(self, key: Key) -> LeaseId | None:
        return self._by_key.get(key)

    def keys(self) -> list[Key]:
        return list(self._by_key)

    def ended(self, end: LeaseEnd) -> None:
        """Nobody may read the blocks any more."""
        sequence, key = self._lent.pop(end.lease)
        self._engine.release(sequence)
        self._by_key.pop(key, None)
        self._metrics.leases.set(len(self._lent))
        self._lease_metrics.ended(end)
        log.info(
            "lease ended",
            extra={
                "request": key[1],
                "reason": end.reason,
                "detail": end.detail,
                "transport": end.transport,
                "blocks": end.num_blocks,
            },
        )
