"""Counts what a sink says: for the metrics, and for the beats that `/cluster` shows.

Counts on the sink's thread; `uses` may be read from any other.
"""

from typing import assert_never

from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.sink.events import AskedAgain, LinkRefused, LinkUp, Rejected, SinkEvent
from protocol.ids import WorkerId
from protocol.messages import PrefixPull
from protocol.process.metrics import TransferMetrics
from worker.reported.transfer_speed import FetchSpeed, TransferSpeed
from worker.reported.transport_uses import TransportUses


class FetchMetrics:
    def __init__(self, metrics: TransferMetrics, uses: TransportUses | None = None) -> None:
        self.uses = TransportUses() if uses is None else uses
        self.speed = TransferSpeed()
        """From whomever. Whatever prefill hid of it: placement asks what a transfer takes, and
        itself takes off what the prefill to come will hide."""
        self._metrics = metrics

    def noticed(self, event: SinkEvent) -> None:
        metrics = self._metrics
        match event:
            case LinkUp(transport=transport, missed=missed):
                first = "fallback" if missed else "first choice"
                metrics.transports.labels("chosen", transport, "", first).inc()
                for name, why in missed:
                    reason = metrics.reasons.label(why)
                    metrics.transports.labels("fallback", transport, name, reason).inc()
            case LinkRefused(missed=missed):
                for name, why in missed:
                    reason = metrics.reasons.label(why)
                    metrics.transports.labels("refused", "", name, reason).inc()
            case AskedAgain():
                metrics.retries.inc()
            case Rejected(num_blocks=num_blocks, why=why):
                metrics.rejected_blocks.labels(metrics.reasons.label(why)).inc(num_blocks)
            case _:
                assert_never(event)

    def ended(self, end: FetchEnd, *, peer: WorkerId) -> None:
        match end:
            case Landed():
                self._landed(end, peer)
            case Lost():
                self._metrics.fetches.labels("", "lost").inc()
            case Aborted():
                self._metrics.fetches.labels("", "aborted").inc()
            case _:
                assert_never(end)

    def pulled(self, pull: PrefixPull) -> None:
        """What became of a prefix that a peer was believed to have."""
        self._metrics.pulls.labels(pull.outcome).inc()
        self._metrics.pulled_tokens.inc(pull.num_tokens)

    def pull_ended(self, end: FetchEnd, *, peer: WorkerId) -> None:
        """The fetch of such a prefix."""
        if not isinstance(end, Landed):
            return
        self._metrics.pulled_bytes.labels(end.transport).inc(end.num_bytes)
        self._metrics.pull_s.labels(end.transport).observe(end.fetch_s)
        # What the source did before it lent is part of what a pull takes.
        fetched = FetchSpeed(num_bytes=end.num_bytes, flow_s=end.flow_s, exposed_s=end.fetch_s)
        self._note_speed(fetched, end, peer)

    def kept(self, num_blocks: int) -> None:
        """Of a lost fetch so many blocks stay usable."""
        self._metrics.kept_blocks.inc(num_blocks)

    def _landed(self, end: Landed, peer: WorkerId) -> None:
        metrics, transport = self._metrics, end.transport
        metrics.fetches.labels(transport, "landed").inc()
        metrics.moved_bytes.labels(transport).inc(end.num_bytes)
        metrics.fetch_s.labels(transport).observe(end.fetch_s)
        metrics.exposed_s.labels(transport).observe(end.exposed_s)
        if end.num_blocks:
            metrics.first_s.labels(transport).observe(end.first_s)
        fetched = FetchSpeed(num_bytes=end.num_bytes, flow_s=end.flow_s, exposed_s=end.exposed_s)
        self._note_speed(fetched, end, peer)

    def _note_speed(self, fetched: FetchSpeed, end: Landed, peer: WorkerId) -> None:
        self.speed.add_fetch(fetched)
        self.uses.add(
            peer=peer, transport=end.transport, why=end.transport_why, num_bytes=end.num_bytes,
            fetched=fetched,
        )  # fmt: skip
