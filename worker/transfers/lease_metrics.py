"""Counts how leases on this worker's blocks end: for the metrics, and for the beats that `/cluster`
shows. On the source's thread."""

from kvtransfer.endings import LeaseEnd
from protocol.process.metrics import TransferMetrics
from worker.reported.transport_uses import TransportUses


class LeaseMetrics:
    def __init__(self, metrics: TransferMetrics, uses: TransportUses) -> None:
        self._metrics = metrics
        self.uses = uses

    def ended(self, end: LeaseEnd) -> None:
        metrics, transport, num_bytes = self._metrics, end.transport, end.num_bytes
        metrics.lease_ends.labels(end.reason).inc()
        if not transport:
            return
        metrics.lent_bytes.labels(transport).inc(num_bytes)
        if end.reason == "released":
            why = "chosen by the fetching side"
            self.uses.add(peer=end.peer, transport=transport, why=why, num_bytes=num_bytes)
