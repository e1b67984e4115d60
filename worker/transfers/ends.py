"""A worker's two ends of moving KV, and what goes over both: a sink, a source, pulls and loans."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvtransfer.endings import LeaseEnd
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from worker.parts import WorkerParts
from worker.transfers.canary import CanaryFetches
from worker.transfers.fetch_metrics import FetchMetrics
from worker.transfers.lease_metrics import LeaseMetrics
from worker.transfers.loans import PrefixLoans
from worker.transfers.pulls import PrefixPulls, PullLimits
from worker.transfers.quarantine import Quarantine
from worker.transfers.settings import TransferSettings
from worker.transport_uses import TransportUses


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferEnds:
    sink: Sink
    source: Source
    pulls: PrefixPulls
    loans: PrefixLoans
    uses: TransportUses
    metrics: FetchMetrics
    quarantine: Quarantine
    canaries: CanaryFetches

    @property
    def kv_address(self) -> str:
        """As of `Registration`."""
        return self.source.address if self.source.lends_prefixes else ""

    def is_idle(self) -> bool:
        """No prefix moves, and nobody writes late into a block."""
        return not (self.pulls.keys() or len(self.loans) or self.quarantine.num_blocks)

    def close(self) -> None:
        self.sink.close()
        self.source.close()


def open_ends(
    parts: WorkerParts[TransferSettings],
    *,
    on_lease_end: Callable[[LeaseEnd], None],
    lease_metrics: LeaseMetrics,
) -> TransferEnds:
    """`on_lease_end` is told of the ends of leases that are on no loan, on the source's thread."""
    transfer, uses = parts.metrics.transfer, lease_metrics.uses
    metrics = FetchMetrics(transfer, uses)
    quarantine = Quarantine(parts.engine, transfer)
    block_tokens = parts.model.assembly.layout.block_tokens
    loans = PrefixLoans(
        parts.engine, block_tokens=block_tokens, metrics=transfer, lease_metrics=lease_metrics
    )
    source = _source(parts, loans, on_lease_end)
    try:
        sink = _sink(parts, metrics, quarantine)
    except BaseException:
        source.close()
        raise
    limits = PullLimits(max_pulls=parts.settings.max_pulls, timeout_s=parts.settings.pull_timeout_s)
    pulls = PrefixPulls(
        sink=sink,
        engine=parts.engine,
        limits=limits,
        block_tokens=block_tokens,
        metrics=metrics,
        quarantine=quarantine,
    )
    canaries = CanaryFetches(
        sink=sink, engine=parts.engine, block_tokens=block_tokens, quarantine=quarantine
    )
    return TransferEnds(
        sink=sink,
        source=source,
        pulls=pulls,
        loans=loans,
        uses=uses,
        metrics=metrics,
        quarantine=quarantine,
        canaries=canaries,
    )


def _source(
    parts: WorkerParts[TransferSettings],
    loans: PrefixLoans,
    on_lease_end: Callable[[LeaseEnd], None],
) -> Source:
    settings, model = parts.settings, parts.model
    lends = settings.lend_prefixes and parts.engine.can_pull
    return Source(
        memory=model.memory,
        layout=model.assembly.layout,
        worker=parts.worker,
        epoch=parts.epoch,
        compat=model.assembly.transfer_compat,
        on_lease_end=partial(_end_lease, loans, on_lease_end),
        on_borrow=loans.answer if lends else None,
        host=settings.host,
        advertised_host=settings.advertise,
        port=settings.kv_port,
        lease_ttl_s=settings.lease_ttl_s,
        transports=model.transports,
        help_copy=settings.kv_help_copy,
        socket_folder=settings.kv_socket_folder,
        on_broken=parts.give_up,
    )


def _end_lease(loans: PrefixLoans, on_lease_end: Callable[[LeaseEnd], None], end: LeaseEnd) -> None:
    if not loans.ended(end):
        on_lease_end(end)


def _sink(
    parts: WorkerParts[TransferSettings], metrics: FetchMetrics, quarantine: Quarantine
) -> Sink:
    settings, model = parts.settings, parts.model
    return Sink(
        memory=model.memory,
        layout=model.assembly.layout,
        worker=parts.worker,
        compat=model.assembly.transfer_compat,
        transports=model.transports,
        allow_fallback=settings.allow_fallback,
        tcp_lanes=settings.tcp_lanes,
        lease_ttl_s=settings.lease_ttl_s,
        spin_s=settings.kv_spin_us / 1e6,
        on_quiet=quarantine.quiet,
        on_event=metrics.noticed,
        on_broken=parts.give_up,
    )
