"""Requests of one priority: deficit round robin between tenants, first in, first out within one.

Each tenant in turn may spend `QUANTUM_TOKENS` times its weight and what it has left from earlier
rounds (Shreedhar and Varghese, 1995), so that over any time in which two tenants wait, their tokens
differ from their weights' proportion by no more than a quantum and a request. Pure.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from router.admission.queued_request import QueuedRequest

QUANTUM_TOKENS = 512
"""Of a round. Smaller than most requests: whoever sends short ones is not behind a long one."""


@dataclass(slots=True)
class Line:
    """The requests of one tenant, the oldest first."""

    weight: float
    requests: deque[QueuedRequest] = field(default_factory=deque)
    num_tokens: int = 0
    deficit: float = 0.0
    """Tokens that it may still spend in this round. Below 0: what it owes."""

    @property
    def missing(self) -> float:
        """Tokens that it cannot pay yet of its next request."""
        return self.requests[0].num_tokens - self.deficit


class Band:
    def __init__(self) -> None:
        self._lines: OrderedDict[str, Line] = OrderedDict()
        """The first one's turn it is."""
        self.num_tokens = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def lines(self) -> Iterator[tuple[str, Line]]:
        return iter(self._lines.items())

    def line(self, tenant: str) -> Line | None:
        return self._lines.get(tenant)

    def add(self, request: QueuedRequest, *, deficit: float = 0.0) -> None:
        """`deficit`: what its tenant brings along if it does not wait yet."""
        self._count(request, deficit).requests.append(request)

    def add_back(self, request: QueuedRequest, *, deficit: float = 0.0) -> None:
        """As its tenant's first; what it paid is its tenant's again."""
        line = self._count(request, deficit)
        line.requests.appendleft(request)
        line.deficit += request.num_tokens

    def head(self) -> QueuedRequest:
        """Whose turn it is: the same until it is removed. Only of a band that is not empty."""
        self._make_whole_rounds()
        while True:
            line = next(iter(self._lines.values()))
            if line.missing <= 0:
                return line.requests[0]
            self._pass_turn()

    def remove(self, request: QueuedRequest, *, pays: bool) -> float:
        """`pays`: it had its turn. Returns what its tenant takes along if this was its last one:
        0, or below that what it owes."""
        line = self._lines[request.tenant]
        line.requests.remove(request)
        line.num_tokens -= request.num_tokens
        self.num_tokens -= request.num_tokens
        if pays:
            line.deficit -= request.num_tokens
        if line.requests:
            return 0.0
        del self._lines[request.tenant]
        return min(0.0, line.deficit)

    def _count(self, request: QueuedRequest, deficit: float) -> Line:
        line = self._lines.get(request.tenant)
        if line is None:
            if not self._lines:  # its turn begins
                deficit += QUANTUM_TOKENS * request.weight
            line = self._lines[request.tenant] = Line(request.weight, deficit=deficit)
        line.weight = request.weight
        line.num_tokens += request.num_tokens
        self.num_tokens += request.num_tokens
        return line

    def _make_whole_rounds(self) -> None:
        """Rounds in which nobody could pay are made at once, whatever the requests' sizes."""
        lines = self._lines.values()
        if any(line.missing <= 0 for line in lines):
            return
        num = min(math.ceil(line.missing / (QUANTUM_TOKENS * line.weight)) for line in lines) - 1
        for line in lines:
            line.deficit += num * QUANTUM_TOKENS * line.weight

    def _pass_turn(self) -> None:
        """The first one's turn is over; the next one's begins."""
        self._lines.move_to_end(next(iter(self._lines)))
        line = next(iter(self._lines.values()))
        line.deficit += QUANTUM_TOKENS * line.weight
