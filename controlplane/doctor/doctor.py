"""`baton doctor`: look at this machine, measure what moves KV, say why nothing faster would.

Changes nothing, leaves nothing behind. Takes a few seconds alone; with a peer as long as the other
takes to come, and some seconds more.
"""

import secrets
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import msgspec

from controlplane.doctor import compute, gpu, memory, network, pair, planes, probe
from controlplane.doctor.borrower import borrow
from controlplane.doctor.facts import Facts, GpuFacts
from controlplane.doctor.finding import Finding
from controlplane.doctor.meeting import Encounter, serve, visit
from controlplane.doctor.report import Report, Way, as_json, as_text
from controlplane.doctor.settings import DoctorSettings
from controlplane.doctor.trial import Offer, Outcome, Unusable
from kvtransfer.transport_names import DEVICE_TRANSPORTS, HOST_TRANSPORTS
from protocol.errors import BatonError, SettingsError
from protocol.process.logs import configure_logging
from protocol.process.settings import load

GPU_S: Final = 5.0
"""A driver that has not answered by then is in trouble."""
LENDER_S: Final = 5.0
"""To start the process that lends; it takes half a second."""
TRANSPORTS: Final = (*DEVICE_TRANSPORTS, *HOST_TRANSPORTS)
"""Of this build."""


class NothingMoves(BatonError):
    """No transport works on this machine, or between the two."""


def doctor(argv: Sequence[str]) -> None:
    """Raises SettingsError, MeetingFailed, or NothingMoves after the report."""
    settings = load(DoctorSettings, argv, prog="baton doctor")
    configure_logging(process="doctor", level="error")
    report = examine(settings)
    sys.stdout.write(as_json(report) + "\n" if settings.as_json else as_text(report))
    if not report.can_move:
        raise NothingMoves("no transport works; see the report")


def examine(settings: DoctorSettings) -> Report:
    with ThreadPoolExecutor(1, thread_name_prefix="gpu") as asking:
        answer = asking.submit(gpu.ask, timeout_s=GPU_S)
        facts = probe.facts(transports=TRANSPORTS, gpu=GpuFacts())
        outcomes = _measure_here(planes.measurable(facts, facts))
        facts = replace(facts, gpu=answer.result())
    alone = Report(
        facts=facts,
        findings=(*_checks(facts), *planes.findings(outcomes, where="here")),
        ways=(
            Way(
                source=facts.host, fetcher=facts.host, planes=planes.planes(facts, facts, outcomes)
            ),
        ),
    )
    met = _meet(settings, facts)
    return alone if met is None else _with_peer(alone, met)


def _checks(facts: Facts) -> list[Finding]:
    return [*memory.check(facts), *compute.check(facts), *network.check(facts)]


def _with_peer(alone: Report, met: Encounter) -> Report:
    here, there = alone.facts, met.there
    found = pair.check(here, there, mtu=met.mtu)
    found += planes.findings(met.fetched, where="from-peer")
    found += planes.findings(met.lent, where="to-peer")
    inward = Way(
        source=there.host, fetcher=here.host, planes=planes.planes(here, there, met.fetched)
    )
    outward = Way(source=here.host, fetcher=there.host, planes=planes.planes(here, there, met.lent))
    return Report(
        facts=here,
        peer=there,
        findings=(*alone.findings, *found),
        ways=(*alone.ways, inward, outward),
    )


def _meet(settings: DoctorSettings, facts: Facts) -> Encounter | None:
    if settings.peer:
        host, _, port = settings.peer.rpartition(":")
        return visit(host.strip("[]"), int(port), token=settings.token, facts=facts)
    if not settings.serve:
        return None
    token = secrets.token_urlsafe(18)
    with _listen(settings) as listening:
        _say(
            f"waiting {settings.wait_s:.0f} s; on the other machine run:\n"
            f"  BATON_TOKEN={token} baton doctor --peer"
            f" {_reached_at(settings, facts)}:{listening.getsockname()[1]}"
        )
        return serve(
            listening,
            token=token,
            facts=facts,
            wait_s=settings.wait_s,
            on_stranger=lambda why: _say(f"refused {why}"),
        )


def _listen(settings: DoctorSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"host: cannot listen on {settings.host}:{settings.port}: {error}"
        ) from error


def _reached_at(settings: DoctorSettings, facts: Facts) -> str:
    return facts.host if settings.host in ("0.0.0.0", "::") else settings.host


def _say(text: str) -> None:
    """Beside the report, which alone goes to stdout."""
    sys.stderr.write(f"baton doctor: {text}\n")
    sys.stderr.flush()


def _measure_here(transports: Sequence[str]) -> tuple[Outcome, ...]:
    """Between two processes of this machine, as between two workers."""
    child = subprocess.Popen(
        [sys.executable, "-m", "controlplane.doctor.lender", *transports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], LENDER_S)
        line = child.stdout.readline() if ready else b""
        if not line:
            child.kill()
            why = "a process that lends could not be started"
            return tuple(Unusable(transport=name, why=why) for name in transports)
        offers = msgspec.json.decode(line, type=tuple[Offer, ...])
        outcomes = tuple(borrow(offer) for offer in offers)
        child.stdin.close()
        return outcomes
