"""Which router is told of a worker's load between two beats, and how often it may be. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from protocol.ids import RouterId
from protocol.messages import Beat

REPORT_COST_S = 50e-6
"""Of a router's core, for each report that comes alone; among many others 20 us
(`bench/load_reports.py`)."""
REPORT_SHARE = 0.02
"""Of a router's core, for the reports of all its workers together."""
MAX_PER_S = 40.0
BURST = 4.0
"""Reports that may follow each other at once after a silence: what matters is that those who place
at the same moment see each other, not how often they do."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a router knows of us, by the last that it was told."""

    num_of_others: int
    num_requests: int
    num_free: int


class LoadReports:
    """A report is due when there is news that the router cannot know by itself: others' requests
    came, or there is more room than it was told."""

    def __init__(self) -> None:
        self._told: dict[RouterId, _Told] = {}
        self._allowed: dict[RouterId, float] = {}
        self._now = 0.0

    def note_told(self, beat: Beat, received: Mapping[RouterId, int]) -> None:
        """All routers were just told `beat`; of each so many computations were received."""
        self._told = {router: _known(beat, router, received) for router in received}
        self._forget_all_but(received)

    def due(
        self, beat: Beat, received: Mapping[RouterId, int], *, workers: Mapping[RouterId, int],
        now: float,
    ) -> list[RouterId]:  # fmt: skip
        """Who is told now, and is taken to be: `beat` is what there is to say, `workers` how many
        report to each router, `now` seconds of any clock."""
        passed_s, self._now = now - self._now, now
        told = []
        for router in received:
            known = _known(beat, router, received)
            rate = min(MAX_PER_S, REPORT_SHARE / REPORT_COST_S / max(1, workers[router]))
            allowed = min(BURST, self._allowed.get(router, BURST) + rate * passed_s)
            if allowed >= 1.0 and _is_news(known, self._told.get(router)):
                allowed -= 1.0
                self._told[router] = known
                told.append(router)
            self._allowed[router] = allowed
        return told

    def _forget_all_but(self, routers: Collection[RouterId]) -> None:
        for router in self._allowed.keys() - set(routers):
            del self._allowed[router]


def _known(beat: Beat, router: RouterId, received: Mapping[RouterId, int]) -> _Told:
    return _Told(
        num_of_others=sum(received.values()) - received[router],
        num_requests=beat.load.running + beat.load.waiting,
        num_free=beat.blocks.free + beat.blocks.cached,
    )


def _is_news(known: _Told, told: _Told | None) -> bool:
    if told is None:
        return True
    return (
        known.num_of_others != told.num_of_others
        or known.num_requests < told.num_requests
        or known.num_free > told.num_free
    )
