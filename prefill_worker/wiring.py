"""What a prefill worker adds: a source, and the leases on its blocks."""

from kvtransfer.source.source import Source
from prefill_worker.lent import LentLeases
from prefill_worker.settings import PrefillSettings
from prefill_worker.transfers import PrefillTransfers
from worker.parts import WorkerParts


def open_transfers(parts: WorkerParts[PrefillSettings]) -> PrefillTransfers:
    settings, model = parts.settings, parts.model
    lent = LentLeases(parts.engine, parts.metrics.transfer)
    source = Source(
        memory=model.memory,
        layout=model.assembly.layout,
        worker=parts.worker,
        epoch=parts.epoch,
        compat=model.assembly.transfer_compat,
        on_lease_end=lent.ended,
        host=settings.host,
        advertised_host=settings.advertise,
        lease_ttl_s=settings.lease_ttl_s,
        transports=model.transports,
        help_copy=settings.kv_help_copy,
        on_broken=parts.give_up,
    )
    return PrefillTransfers(source=source, lent=lent, engine=parts.engine, requests=parts.requests)
