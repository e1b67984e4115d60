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
from typing import Final, Self

import msgspec
from pydantic import Field, model_validator

from controlplane.doctor.facts import Facts, GpuFacts
from controlplane.doctor.gpu import ask_driver
from controlplane.doctor.machine import check_compute, check_memory
from controlplane.doctor.measure import measure
from controlplane.doctor.network import check_network, check_pair
from controlplane.doctor.peer import PeerMeasurement, measure_with_peer, serve_peer
from controlplane.doctor.planes import measurable, plane_findings, plane_reports
from controlplane.doctor.probe import read_facts
from controlplane.doctor.report import Report, Way, as_json, as_text
from controlplane.doctor.trial import Outcome, TrialLeases, Unusable
from kvtransfer.transport_names import DIRECT_TRANSPORTS, HOST_TRANSPORTS
from protocol.errors import BatonError
from protocol.process.listening import bound_socket
from protocol.process.logs import configure_logging
from protocol.process.settings import CommandSettings, load

GPU_S: Final = 5.0
"""A driver that has not answered by then is in trouble."""
MIN_TOKEN_CHARS: Final = 16
SOURCE_S: Final = 30.0
"""To start the process that lends: half a second, and far more where a pod has half a core."""


class DoctorSettings(CommandSettings):
    """Without --serve and --peer: this machine alone, in a few seconds."""

    as_json: bool = Field(default=False, alias="json")
    """Print everything as one JSON object."""
    serve: bool = False
    """Wait for the doctor of another machine, and measure the way between the two. Prints the
    token that the other must give; without it nobody gets more than a refusal."""
    peer: str = Field(default="", pattern=r"^(|.+:\d{1,5})$")
    """HOST:PORT of a doctor that serves. Empty: none."""
    token: str = Field(default="", repr=False)
    """With --peer: what the serving doctor printed. With --serve: what it asks for; empty: made and
    printed. Better set as BATON_TOKEN than as a flag, which others can read."""
    host: str = "0.0.0.0"
    """With --serve: interface to wait on. All, because the other machine must reach it."""
    port: int = Field(default=0, ge=0, le=65535)
    """With --serve: port to wait on. 0: any free one, printed."""
    wait_s: float = Field(default=300.0, gt=0, le=3600)
    """With --serve: seconds to wait for the other: time to walk to it."""

    @model_validator(mode="after")
    def _one_role(self) -> Self:
        if self.serve and self.peer:
            raise ValueError("give --serve on one machine and --peer on the other")
        if bool(self.peer) != bool(self.token) and not self.serve:
            raise ValueError("--peer and the token that the serving doctor printed go together")
        if self.serve and self.token and len(self.token) < MIN_TOKEN_CHARS:
            raise ValueError(f"token: must have at least {MIN_TOKEN_CHARS} characters")
        return self


class NothingMoves(BatonError):
    """No transport works on this machine, or between the two."""


def doctor(argv: Sequence[str]) -> None:
    """Raises SettingsError, PeerFailed, or NothingMoves after the report."""
    settings = load(DoctorSettings, argv, prog="baton doctor")
    configure_logging(process="doctor", level="error")
    report = examine(settings)
    sys.stdout.write(as_json(report) + "\n" if settings.as_json else as_text(report))
    if not report.can_move:
        raise NothingMoves("no transport works; see the report")


def examine(settings: DoctorSettings) -> Report:
    with ThreadPoolExecutor(1, thread_name_prefix="gpu") as asking:
        answer = asking.submit(ask_driver, timeout_s=GPU_S)
        facts = read_facts(transports=(*DIRECT_TRANSPORTS, *HOST_TRANSPORTS), gpu=GpuFacts())
        outcomes = _measure_here(measurable(facts, facts))
        facts = replace(facts, gpu=answer.result())
    found = [*check_memory(facts), *check_compute(facts), *check_network(facts)]
    found += plane_findings(outcomes, where="here")
    planes = plane_reports(facts, facts, outcomes)
    way = Way(source=facts.host, fetcher=facts.host, planes=planes)
    alone = Report(facts=facts, findings=tuple(found), ways=(way,))
    met = _measure_with_peer(settings, facts)
    return alone if met is None else _with_peer(alone, met)


def _with_peer(alone: Report, met: PeerMeasurement) -> Report:
    here, there = alone.facts, met.there
    found = check_pair(here, there, mtu=met.mtu)
    found += plane_findings(met.fetched, where="from-peer")
    found += plane_findings(met.lent, where="to-peer")
    fetched, lent = (plane_reports(here, there, moved) for moved in (met.fetched, met.lent))
    inward = Way(source=there.host, fetcher=here.host, planes=fetched)
    outward = Way(source=here.host, fetcher=there.host, planes=lent)
    findings, ways = (*alone.findings, *found), (*alone.ways, inward, outward)
    return Report(facts=here, peer=there, findings=findings, ways=ways)


def _measure_with_peer(settings: DoctorSettings, facts: Facts) -> PeerMeasurement | None:
    if settings.peer:
        host, _, port = settings.peer.rpartition(":")
        return measure_with_peer(host.strip("[]"), int(port), token=settings.token, facts=facts)
    if not settings.serve:
        return None
    token = settings.token or secrets.token_urlsafe(18)
    shown = "..." if settings.token else token
    with _listen(settings) as listening:
        _say(
            f"waiting {settings.wait_s:.0f} s; on the other machine run:\n"
            f"  BATON_TOKEN={shown} baton doctor --peer"
            f" {_reached_at(settings, facts)}:{listening.getsockname()[1]}"
        )
        return serve_peer(
            listening,
            token=token,
            facts=facts,
            wait_s=settings.wait_s,
            on_refused=lambda why: _say(f"refused {why}"),
        )


def _listen(settings: DoctorSettings) -> socket.socket:
    made = bound_socket(settings.host, settings.port, setting="host")
    made.listen()
    return made


def _reached_at(settings: DoctorSettings, facts: Facts) -> str:
    return facts.host if settings.host in ("0.0.0.0", "::") else settings.host


def _say(text: str) -> None:
    """Beside the report, which alone goes to stdout."""
    sys.stderr.write(f"baton doctor: {text}\n")
    sys.stderr.flush()


def _measure_here(transports: Sequence[str]) -> tuple[Outcome, ...]:
    """Between two processes of this machine, as between two workers."""
    child = subprocess.Popen(
        [sys.executable, "-m", "controlplane.doctor.measure", *transports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], SOURCE_S)
        line = child.stdout.readline() if ready else b""
        if not line:
            child.kill()
            why = "a process that lends could not be started"
            return tuple(Unusable(transport=name, why=why) for name in transports)
        leases = msgspec.json.decode(line, type=tuple[TrialLeases, ...])
        outcomes = tuple(measure(one) for one in leases)
        child.stdin.close()
        return outcomes
