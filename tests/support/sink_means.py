"""What a sink's parts are made with, when no sink is there."""

from collections.abc import Callable, Sequence

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.events import SinkEvent
from kvtransfer.sink.means import SinkMeans
from protocol.ids import WorkerId
from protocol.layout import Layout


def sink_means(
    memory: BlockMemory,
    layout: Layout,
    *,
    compat: str = "",
    on_quiet: Callable[[Sequence[int]], None] = lambda block_ids: None,
    on_event: Callable[[SinkEvent], None] = lambda event: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> SinkMeans:
    return SinkMeans(
        memory=memory, layout=layout, worker=WorkerId("decode-0"), compat=compat,
        transports=("tcp",), allow_fallback=True, lease_ttl_s=6.0, tcp_lanes=2,
        on_quiet=on_quiet, on_event=on_event, clock=clock,
    )  # fmt: skip
