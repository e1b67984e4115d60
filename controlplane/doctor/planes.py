"""Which data plane would move KV, and why not a faster one. Pure: facts and measurements in.

The ladder is the order in which planes are worth having; a worker's own `--transports` decides
what it really tries, and its log and `/cluster` say what it took.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from controlplane.doctor.facts import Facts, Finding, ok, warn
from controlplane.doctor.network import one_host, shares_memory
from controlplane.doctor.trial import Measured, Outcome, Unusable
from kvtransfer.transport_names import DIRECT_TRANSPORTS, HOST_TRANSPORTS

LADDER: Final = ("cuda_ipc", "nccl", "shm", "ucx", "tcp")
"""Fastest first; the first two between pools on GPUs. `shm` and `tcp` move those too, through host
memory, and are measured between pools that lie there."""
_REMEDIES: Final = {
    "shm": "Run both workers as one user in one network namespace.",
    "ucx": "Read what UCX says with UCX_LOG_LEVEL=info, and see its devices by ucx_info -d.",
    "tcp": "Let workers reach each other on any TCP port: they listen on free ones (firewall,"
    " NetworkPolicy).",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneReport:
    name: str
    state: Literal["measured", "possible", "no"]
    """Possible: nothing is known to be in its way, but nothing was moved by it."""
    why: str
    measured: Measured | None = None


def plane_reports(
    here: Facts, there: Facts, outcomes: Iterable[Outcome]
) -> tuple[PlaneReport, ...]:
    """Every plane between two places, the same facts twice for two processes of one machine."""
    by_name = {outcome.transport: outcome for outcome in outcomes}
    return tuple(_plane(name, here, there, by_name.get(name)) for name in LADDER)


def best_plane(candidates: Iterable[PlaneReport]) -> PlaneReport | None:
    """The best that moved blocks; None: nothing can."""
    return next((plane for plane in candidates if plane.state == "measured"), None)


def plane_findings(outcomes: Iterable[Outcome], *, where: str) -> list[Finding]:
    """What was measured, as findings. `where` says between whom."""
    return [_finding(outcome, where=where) for outcome in outcomes]


def _finding(outcome: Outcome, *, where: str) -> Finding:
    name = f"{outcome.transport}-{where}"
    if isinstance(outcome, Unusable):
        return warn(name, outcome.why, _REMEDIES[outcome.transport])
    return ok(name, _speed_text(outcome))


def _speed_text(measured: Measured) -> str:
    return (
        f"{measured.gb_per_s:.2f} GB/s median, {measured.best_gb_per_s:.2f} best;"
        f" one block of {measured.block_bytes >> 10} KiB"
        f" {measured.p50_us:.0f} µs p50, {measured.p99_us:.0f} µs p99"
    )


def _plane(name: str, here: Facts, there: Facts, outcome: Outcome | None) -> PlaneReport:
    if isinstance(outcome, Measured):
        return PlaneReport(name=name, state="measured", why=_speed_text(outcome), measured=outcome)
    if isinstance(outcome, Unusable):
        return PlaneReport(name=name, state="no", why=outcome.why)
    why = obstacle(name, here, there)
    missing = [facts.host for facts in (here, there) if name not in facts.transports]
    if not why and missing:
        why = "not in this version of Baton"
    possible = "for pools on a GPU; not measured" if name in DIRECT_TRANSPORTS else "not measured"
    return PlaneReport(name=name, state="no" if why else "possible", why=why or possible)


def measurable(here: Facts, there: Facts) -> tuple[str, ...]:
    """Those worth trying between two places, the best first."""
    both = set(here.transports) & set(there.transports)
    return tuple(
        name for name in HOST_TRANSPORTS if name in both and not obstacle(name, here, there)
    )


def obstacle(name: str, here: Facts, there: Facts) -> str:
    """What is in the way of a plane that was not measured; "" when nothing is known to be."""
    both = (here, there)
    no_gpu = next((f"no GPU on {facts.host}" for facts in both if not facts.gpu.names), "")
    match name:
        case "cuda_ipc":
            return "another host" if not one_host(here, there) else no_gpu
        case "nccl":
            without = next((facts.host for facts in both if not facts.gpu.nccl), "")
            return no_gpu or (f"no libnccl on {without}" if without else "")
        case "shm":
            return shares_memory(here, there)
        case "ucx":
            return next(filter(None, map(_no_ucx, both)), "")
        case _:
            return ""


def _no_ucx(facts: Facts) -> str:
    """Why this machine does not use UCX: `kvtransfer.transports.ucx.plane` decides so too."""
    if not facts.network.ucx:
        return f"ucxx is not installed on {facts.host}"
    if not facts.network.rdma and not facts.network.ucx_forced:
        return f"no RDMA device on {facts.host}; without one plain TCP is faster"
    return ""
