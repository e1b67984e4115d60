"""How fast KV comes: over a pair of workers, or to one from all.

Measured from whole fetches of late: the median of what bytes took, so that a peer that was stopped
once does not look slow, and the least of what a fetch takes besides them.
"""

from collections import deque
from dataclasses import dataclass

NUM_KEPT = 16
"""Fetches: a way that becomes slower shows within some ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSpeed:
    """What a fetch took; seconds as of `kvtransfer.endings.Landed`."""

    num_bytes: int
    flow_s: float
    exposed_s: float

    @property
    def latency_s(self) -> float:
        """Of what came after the prefill had ended, all but the bytes' own time; where the bytes
        came before, all of it, which is more than the latency."""
        return self.exposed_s - (self.flow_s if self.exposed_s > self.flow_s else 0.0)


class TransferSpeed:
    """One thread adds, any may read."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """While bytes flow; 0 until measured."""
        self.latency_s = 0.0
        """Of a fetch, whatever its size; 0 until measured."""
        self._flows: deque[tuple[float, int]] = deque(maxlen=NUM_KEPT)
        self._latencies: deque[float] = deque(maxlen=NUM_KEPT)

    def add_fetch(self, fetch: FetchSpeed) -> None:
        if fetch.num_bytes and fetch.flow_s > 0:
            self._flows.append((fetch.num_bytes / fetch.flow_s, fetch.num_bytes))
            self.bytes_per_s = _median(sorted(self._flows))
        self._latencies.append(fetch.latency_s)
        self.latency_s = max(0.0, min(self._latencies))


def _median(rates: list[tuple[float, int]]) -> float:
    """The rate at which half of all bytes came as fast or faster; `rates` ascends."""
    rest = sum(num_bytes for _, num_bytes in rates) / 2
    for rate, num_bytes in rates:
        rest -= num_bytes
        if rest <= 0:
            return rate
    return rates[-1][0]
