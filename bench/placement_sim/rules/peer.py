"""What all rules but Baton's have in common: a view of each role, by reports and placements."""

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rule import Member, Report
from bench.placement_sim.rules.view import View

TIE = 1e-9


class Peer:
    """Subclasses say `name` and `place_request`. Ties are broken by seeded chance, as peers do."""

    name: str

    def __init__(self) -> None:
        self.prefills, self.decodes = View(), View()
        self.chance = random.Random(0)

    def add_member(self, member: Member) -> None:
        self._view(member).add_member(member)

    def note_arrived(self, request: Request) -> None:
        """A peer looks at nothing before."""

    def note_placed(self, request: Request, route: Route, *, now: float) -> None:
        if route.prefill is not None:
            self.prefills.requests[self.prefills.row(route.prefill)] += 1
        self.decodes.requests[self.decodes.row(route.decode)] += 1

    def note_begun(self, request: Request, route: Route, *, now: float) -> None:
        """Nothing that a peer goes by."""

    def note_report(self, report: Report, *, now: float) -> None:
        self._view(report.member).note_report(report)

    def note_blocks(
        self, member: Member, kind: Literal["stored", "evicted"], blocks: Sequence[int]
    ) -> None:
        self._view(member).note_blocks(member, kind, blocks)

    def note_first_token(self, request: Request, route: Route, *, now: float) -> None:
        if route.prefill is not None:
            self.prefills.requests[self.prefills.row(route.prefill)] -= 1

    def note_ended(self, request: Request, route: Route, *, now: float) -> None:
        self.decodes.requests[self.decodes.row(route.decode)] -= 1

    def highest(self, scores: NDArray[np.float64]) -> int:
        """The row of the highest score."""
        best = np.flatnonzero(scores >= scores.max() - TIE)
        return int(best[0]) if len(best) == 1 else int(best[self.chance.randrange(len(best))])

    def lowest(self, costs: NDArray[np.float64] | NDArray[np.int64]) -> int:
        return self.highest(-costs.astype(np.float64))

    def apart(self, prefill: int, decode: int) -> Route:
        """By row."""
        return Route(prefill=self.prefills.index(prefill), decode=self.decodes.index(decode))

    def alone(self, decode: int) -> Route:
        return Route(prefill=None, decode=self.decodes.index(decode))

    def _view(self, member: Member) -> View:
        return self.prefills if member.role == "prefill" else self.decodes
