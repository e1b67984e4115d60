"""What the doctor says: the values, as lines for people and as JSON for scripts."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from controlplane.doctor.facts import Facts, Finding
from controlplane.doctor.planes import PlaneReport, best_plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From one place to another: every plane, the best first."""

    source: str
    fetcher: str
    planes: tuple[PlaneReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    facts: Facts
    findings: tuple[Finding, ...]
    ways: tuple[Way, ...]
    peer: Facts | None = None

    @property
    def can_move(self) -> bool:
        """Something moves KV on every way that was tried."""
        return all(best_plane(way.planes) is not None for way in self.ways)


def as_json(report: Report) -> str:
    return json.dumps(
        {
            "host": report.facts.host,
            "version": report.facts.version,
            "ok": report.can_move,
            "findings": [asdict(finding) for finding in report.findings],
            "ways": [_way(way) for way in report.ways],
            "facts": asdict(report.facts),
            "peer": None if report.peer is None else asdict(report.peer),
        },
        indent=2,
    )


def as_text(report: Report) -> str:
    return "\n".join(_lines(report)) + "\n"


def _way(way: Way) -> dict[str, Any]:
    best = best_plane(way.planes)
    return {
        "source": way.source,
        "fetcher": way.fetcher,
        "uses": None if best is None else best.name,
        "planes": [_plane(plane) for plane in way.planes],
    }


def _plane(plane: PlaneReport) -> dict[str, Any]:
    measured = plane.measured and msgspec.structs.asdict(plane.measured)
    return {**asdict(plane), "measured": measured}


def _lines(report: Report) -> Iterator[str]:
    yield f"Baton {report.facts.version} on {report.facts.host}"
    width = max(len(finding.name) for finding in report.findings)
    for finding in report.findings:
        yield f"  {finding.severity:<4}  {finding.name:<{width}}  {finding.value}"
        if finding.remedy:
            yield f"  {'':<4}  {'':<{width}}  -> {finding.remedy}"
    for way in report.ways:
        yield ""
        yield from _way_lines(way)


def _way_lines(way: Way) -> Iterator[str]:
    best = best_plane(way.planes)
    between = f"from {way.source} to {way.fetcher}"
    if way.source == way.fetcher:
        between = f"between workers on {way.source}"
    yield f"KV {between}: {'nothing can move it' if best is None else f'would move by {best.name}'}"
    for plane in way.planes:
        yield f"  {plane.name:<8}  {plane.state:<8}  {plane.why}"
