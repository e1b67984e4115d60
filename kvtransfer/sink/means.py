"""What every fetch of a sink uses alike, handed on as one value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtransfer.memory.host_pool import Pool
from kvtransfer.sink.events import Notice
from protocol.ids import WorkerId
from protocol.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
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
    on_notice: Callable[[Notice], None]
    clock: Callable[[], float]
