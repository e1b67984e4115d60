"""What `/cluster` and `/ready` show of the cluster.

Filled by whoever owns the registry, shown by `router.http.app`. Plain values, no behaviour.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.ids import Epoch, RequestId, RouterId, WorkerId
from protocol.messages import Blocks, Role, Speeds, TransportUse, WorkerState
from router.trace import RequestTrace

IndexState = Literal["exact", "degraded", "off"]
RedisState = Literal["connected", "lost", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    id: WorkerId
    role: Role
    pid: int
    host: str
    epoch: Epoch
    state: WorkerState | Literal["lost"]
    why: str
    """Why it gets no requests; "" when it may get some."""
    transport: str
    """The transport this worker used most, else the first it offers."""
    transports: tuple[TransportUse, ...] = ()
    """By which transport and why it moved KV from or to each peer, the latest first."""
    blocks: Blocks
    running: int
    waiting: int
    speeds: Speeds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    router: RouterId
    index: IndexState
    redis: RedisState
    workers: tuple[WorkerView, ...]


class Cluster(Protocol):
    """What the HTTP surface may ask about the cluster, on the event loop: workers come and go
    there, so no other thread may look. All answers are local and immediate."""

    def not_ready(self) -> str | None:
        """Why a request would not be served now; None when it would."""

    def view(self) -> ClusterView: ...

    def max_context_tokens(self) -> int | None:
        """The longest context a live worker takes; None while none is known."""

    def traces(self, request: RequestId) -> tuple[RequestTrace, ...]:
        """As `TraceRing.find`."""
