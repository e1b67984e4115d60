"""What every fetch of a sink uses alike, handed on as one value."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtransfer.memory.pool import Pool, check_block_bytes
from kvtransfer.sink.events import SinkEvent
from kvtransfer.transports.tcp.messages import MAX_LANES
from protocol.ids import WorkerId
from protocol.layout import Layout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkMeans:
    """What a worker fetches with and into."""

    memory: Pool
    layout: Layout
    worker: WorkerId
    compat: str
    transports: tuple[str, ...]
    allow_fallback: bool
    lease_ttl_s: float
    tcp_lanes: int
    on_quiet: Callable[[Sequence[int]], None]
    on_event: Callable[[SinkEvent], None]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        """Raises ValueError when memory and layout disagree, or for too many lanes."""
        check_block_bytes(self.memory, self.layout)
        if not 0 <= self.tcp_lanes <= MAX_LANES:
            raise ValueError(f"tcp_lanes: {self.tcp_lanes} is not between 0 and {MAX_LANES}")

    def return_slots(self, block_ids: Sequence[int]) -> None:
        """Tell the owner that nobody writes into these slots of ended fetches any more."""
        try:
            self.on_quiet(block_ids)
        except Exception:
            log.exception("the owner of quarantined slots failed to take them back")

    def report_event(self, event: SinkEvent) -> None:
        """Tell the owner what happens on the way."""
        try:
            self.on_event(event)
        except Exception:
            log.exception("the owner of a sink failed at an event")
