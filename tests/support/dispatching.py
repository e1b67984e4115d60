"""Requests against fake workers, for tests of a request's life."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from support.fake_cluster import (
    APART,
    FakeCluster,
    Heard,
    Told,
    collect,
    request,
    tokens_of,
)
from support.fake_worker import expected

from protocol.messages import Token
from router.failover.stall import StallLimits
from router.requests.dispatch import DispatchLimits
from router.requests.events import (
    Ended,
    GenerationRequest,
)

ONCE = DispatchLimits(rules=APART, patience_s=0.2)

SOON_AGAIN = DispatchLimits(rules=APART, full_pause_s=0.01)
IMPATIENT = DispatchLimits(
    rules=APART, stalls=StallLimits(silent_s=5.0, first_token_s=0.3, next_token_s=0.3)
)


def count(cluster: FakeCluster, name: str, **labels: str) -> float:
    return cluster.metrics.registry.get_sample_value(name, labels) or 0.0


def queued(cluster: FakeCluster) -> float:
    name, labels = "baton_router_queue_requests", {"band": "normal"}
    return cluster.metrics.registry.get_sample_value(name, labels) or 0.0


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


@asynccontextmanager
async def client_of(
    cluster: FakeCluster, asked: GenerationRequest, heard: Heard
) -> AsyncIterator[asyncio.Task[list[Told]]]:
    """A client that leaves at the end of the block."""
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(collect(cluster, asked, heard), name="client")
        yield answer
        answer.cancel()


class Killing(Heard):
    """Kills the first decode worker when it is told the token `at`."""

    def __init__(self, cluster: FakeCluster, *, at: int) -> None:
        super().__init__()
        self._cluster, self._at = cluster, at

    def token(self, token: Token) -> None:
        super().token(token)
        if token.index == self._at:
            self._cluster.workers["decode-0"].die()


async def answers(cluster: FakeCluster, **changes: int) -> Ended:
    """Serves one request and checks its tokens; returns how it ended."""
    asked = request(**changes)  # type: ignore[arg-type]
    events = await collect(cluster, asked)
    assert tokens_of(events) == expected(asked.token_ids, asked.sampling)
    await cluster.until_idle()
    ended = events[-1]
    assert isinstance(ended, Ended)
    return ended
