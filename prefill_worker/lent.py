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
from worker.transport_uses import TransportUses

log = logging.getLogger(__name__)


class LentLeases:
    """A lease may outlive its request; its end frees the blocks."""

    def __init__(self, engine: Engine, metrics: TransferMetrics) -> None:
        self.uses = TransportUses()
        self._engine = engine
        self._metrics = metrics
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
        self._measure(end)
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

    def _measure(self, end: LeaseEnd) -> None:
        metrics, transport, num_bytes = self._metrics, end.transport, end.num_bytes
        metrics.leases.set(len(self._lent))
        metrics.lease_ends.labels(end.reason).inc()
        if not transport:
            return
        metrics.lent_bytes.labels(transport).inc(num_bytes)
        if end.reason == "released":
            why = "chosen by the fetching side"
            self.uses.add(peer=end.peer, transport=transport, why=why, num_bytes=num_bytes)
