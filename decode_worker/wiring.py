"""What a decode worker adds: a sink, what counts what it says, and its quarantine."""

from decode_worker.fetch_metrics import FetchMetrics
from decode_worker.quarantine import Quarantine
from decode_worker.settings import DecodeSettings
from decode_worker.transfers import DecodeTransfers
from kvtransfer.sink.sink import Sink
from worker.parts import WorkerParts


def open_transfers(parts: WorkerParts[DecodeSettings]) -> DecodeTransfers:
    settings, model = parts.settings, parts.model
    metrics = FetchMetrics(parts.metrics.transfer)
    quarantine = Quarantine(parts.engine, parts.metrics.transfer)
    sink = Sink(
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
    return DecodeTransfers(
        sink=sink,
        layout=model.assembly.layout,
        vocab_size=model.tokenizer.vocab_size,
        engine=parts.engine,
        requests=parts.requests,
        metrics=metrics,
        quarantine=quarantine,
    )
