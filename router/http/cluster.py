"""The cluster as this router sees it, for `/cluster`, `/ready` and `/requests`.

Local and immediate: asks no other process.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from protocol.ids import RequestId, RouterId
from protocol.messages import Beat, Blocks, Load, Role, Speeds, WorkerState
from protocol.process.metrics import RouterMetrics
from router.prefix.prefix_index import PrefixIndex
from router.requests.trace import RequestTrace, TraceRing
from router.runtime import ClusterView, WorkerView
from router.workers.index_feed import IndexFeed
from router.workers.registry import Registry
from router.workers.worker import KnownWorker

_NO_BLOCKS = Blocks(total=0, free=0, cached=0, leased=0)
_NO_LOAD = Load(running=0, waiting=0, waiting_tokens=0)
_NO_SPEEDS = Speeds(prefill_tokens_per_s=0.0, decode_step_s=0.0, transfer_bytes_per_s=0.0)


class LocalCluster:
    """`router.runtime.Cluster`. `drain` makes it not ready for good."""

    def __init__(
        self,
        *,
        router: RouterId,
        registry: Registry,
        index: PrefixIndex,
        feed: IndexFeed,
        traces: TraceRing,
        metrics: RouterMetrics,
        patience_s: float = 15.0,
        why_no_text: Callable[[str], str] = lambda digest: "",
    ) -> None:
        """`patience_s`: that requests wait for a decode worker. `why_no_text`: of a worker's model
        by its digest; "" if there is one."""
        self._patience_s = patience_s
        self._why_no_text = why_no_text
        self._router = router
        self._registry = registry
        self._index = index
        self._feed = feed
        self._traces = traces
        self._metrics = metrics
        self._draining = False
        registry.listeners.append(self._note_workers)
        for role in get_args(Role):
            for state in ("total", "free", "cached", "leased"):
                blocks = partial(self._count_blocks, role, state)
                metrics.pool_blocks.labels(role, state).set_function(blocks)
            for state in ("running", "waiting"):
                requests = partial(self._count_requests, role, state)
                metrics.pool_requests.labels(role, state).set_function(requests)

    def drain(self) -> None:
        self._draining = True

    def not_ready(self) -> str | None:
        if self._draining:
            return "this router is draining"
        waiting = self._feed.store.contact.waiting()
        return waiting or self._registry.why_not_served(within_s=self._patience_s)

    def view(self) -> ClusterView:
        registry = self._registry
        return ClusterView(
            router=self._router,
            index=self._index.state,
            redis=self._feed.redis,
            workers=tuple(_view(one, why=self._why_unused(one)) for one in registry.workers),
        )

    def traces(self, request: RequestId) -> tuple[RequestTrace, ...]:
        return self._traces.find(request, now=time.monotonic())

    def _why_unused(self, worker: KnownWorker) -> str:
        why = self._registry.why_unused(worker)
        return why or self._why_no_text(worker.registration.text) or _why_apart(worker.beat)

    def _note_workers(self) -> None:
        counts = Counter((worker.role, worker.state) for worker in self._registry.workers)
        self._metrics.workers.clear()
        for (role, state), number in counts.items():
            self._metrics.workers.labels(role=role, state=state).set(number)

    def _count_blocks(self, role: Role, state: str) -> int:
        return sum(getattr(beat.blocks, state) for beat in self._beats(role))

    def _count_requests(self, role: Role, state: str) -> int:
        return sum(getattr(beat.load, state) for beat in self._beats(role))

    def _beats(self, role: Role) -> list[Beat]:
        return [one.beat for one in self._registry.workers if one.role == role and one.beat]


def _why_apart(beat: Beat | None) -> str:
    """Of one that is used, but not with everybody."""
    if beat is None or not beat.unreachable:
        return ""
    return f"no KV comes to it from {', '.join(beat.unreachable)}: they are not paired"


def _view(worker: KnownWorker, *, why: str) -> WorkerView:
    registration, beat = worker.registration, worker.beat
    load = beat.load if beat else _NO_LOAD
    return WorkerView(
        id=worker.id,
        role=worker.role,
        pid=registration.pid,
        host=registration.host,
        epoch=worker.epoch,
        state=_state(worker),
        version=registration.version,
        why=why,
        transport=_transport(worker),
        transports=beat.transports if beat else (),
        blocks=beat.blocks if beat else _NO_BLOCKS,
        running=load.running,
        waiting=load.waiting,
        speeds=beat.speeds if beat else _NO_SPEEDS,
    )


def _state(worker: KnownWorker) -> WorkerState | Literal["lost"]:
    """ "lost" is whoever is registered and not on the line, for whatever reason."""
    match worker.state:
        case "connecting" | "mismatched":
            return "lost"
        case state:
            return state


def _transport(worker: KnownWorker) -> str:
    used = worker.beat.transports_used if worker.beat else ()
    if used:
        return max(used, key=lambda transport: (transport[1], transport[0]))[0]
    return next(iter(worker.registration.transports), "")
