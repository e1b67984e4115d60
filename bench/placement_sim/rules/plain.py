"""Rules that know no prefix: the floor."""

from itertools import count

from bench.placement_sim.request import Request, Route
from bench.placement_sim.rules.peer import Peer


class RoundRobin(Peer):
    name = "round_robin"

    def __init__(self) -> None:
        super().__init__()
        self._turns = count()

    def place_request(self, request: Request, *, now: float) -> Route | None:
        turn = next(self._turns)
        return self.apart(turn % self.prefills.num_workers, turn % self.decodes.num_workers)


class AnyOne(Peer):
    name = "random"

    def place_request(self, request: Request, *, now: float) -> Route | None:
        pick = self.chance.randrange
        return self.apart(pick(self.prefills.num_workers), pick(self.decodes.num_workers))


class LeastRequests(Peer):
    """Fewest requests of this router, of either role."""

    name = "least_requests"

    def place_request(self, request: Request, *, now: float) -> Route | None:
        return self.apart(self.lowest(self.prefills.requests), self.lowest(self.decodes.requests))
