"""What `/cluster` shows: plain values, no behaviour."""

from dataclasses import dataclass
from typing import Literal

from protocol.ids import Epoch, RouterId, WorkerId
from protocol.messages import Blocks, Role, Speeds, TransportUse, WorkerState
from router.placement.prefix_index import IndexState

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
