"""One machine's cluster: a router, its workers and a Redis, supervised.

A child that dies is started again; one that cannot start ends the whole with its own last word.
Requests are none of its business: what happens to them when a process dies is the router's to
solve.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from typing import Any

from controlplane.local.child import Child, ChildFailed, ChildSpec, OnChildEvent
from controlplane.local.embedded_redis import EmbeddedRedis
from controlplane.local.ports import kept_ports
from controlplane.local.settings import UpFlags, UpSettings
from controlplane.local.specs import gpu_share, router_spec, worker_names, worker_specs
from controlplane.local.watch import Answers, http_answers, watch
from protocol.process.machine import usable_cores
from protocol.process.settings import bearer
from protocol.store.address import RedisAddress

REDIS_START_S = 10.0
KILL_AFTER_S = 5.0
"""What a child gets on top of its own drain before it is killed."""
POLL_S = 0.1
StartChild = Callable[[ChildSpec, Answers], None]


class RunningCluster:
    """A running cluster. Made by `running`."""

    def __init__(self, flags: UpFlags, *, port: int) -> None:
        self.settings = flags.settings
        self._api_key = flags.api_key
        self.port = port
        self.children: dict[str, Child] = {}

    @property
    def host(self) -> str:
        """Of the HTTP API, for a client on this machine."""
        anywhere = self.settings.host in ("0.0.0.0", "::", "")
        return "127.0.0.1" if anywhere else self.settings.host

    @property
    def url(self) -> str:
        """Where a client on this machine finds the HTTP API."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What opens the API."""
        return bearer(self._api_key)

    async def wait_ready(self, *, unless: asyncio.Event) -> bool:
        """True once every worker serves and the router takes requests; False if `unless` is
        set before that."""
        import httpx  # costs 0.2 s, which the children use meanwhile

        waiting_for = set(worker_names(self.settings))
        async with httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=2, trust_env=False
        ) as client:
            while not unless.is_set():
                answer = await _answer(client, "/cluster")
                workers = [] if answer is None else answer.json()["workers"]
                ready = {worker["id"] for worker in workers if worker["state"] == "ready"}
                for name in ready:
                    self._mark_ready(name)
                if waiting_for <= ready and await _answer(client, "/ready") is not None:
                    self._mark_ready("router")
                    return True
                await asyncio.sleep(POLL_S)
        return False

    def _mark_ready(self, name: str) -> None:
        if name in self.children:
            self.children[name].was_ready = True


@asynccontextmanager
async def running(
    flags: UpFlags, *, on_event: OnChildEvent, hurry: asyncio.Event
) -> AsyncIterator[RunningCluster]:
    """Starts everything and yields at once; on leaving drains it, until `hurry` is set or for
    `drain_s` at most.

    Raises SettingsError for a taken port, and an ExceptionGroup of ChildFailed, also into the body,
    when a child cannot be started.
    """
    settings = flags.settings
    num_workers = len(worker_names(settings))
    with ExitStack() as held:
        api = kept_ports(settings.host, settings.port, num=1, setting="port")
        local = RunningCluster(flags, port=held.enter_context(api)[0])
        of_metrics = kept_ports(
            settings.loopback, settings.metrics_port, num=num_workers, setting="metrics_port"
        )
        metrics_ports = held.enter_context(of_metrics)
        redis = None if settings.redis else held.enter_context(closing(EmbeddedRedis()))
        async with asyncio.TaskGroup() as tasks:

            def start_child(spec: ChildSpec, answers: Answers) -> None:
                child = local.children[spec.name] = Child(spec, on_event=on_event)
                tasks.create_task(child.run(), name=spec.name)
                if settings.hung_s:
                    watching = watch(child, answers, hung_s=settings.hung_s)
                    tasks.create_task(watching, name=f"watch {spec.name}")

            try:
                where = await _redis_address(settings, redis, start_child)
                _start_all(
                    local, flags, redis=where, metrics_ports=metrics_ports, start_child=start_child
                )
                yield local
            finally:
                await _stop(local, hurry=hurry)


async def _redis_address(
    settings: UpSettings, embedded: EmbeddedRedis | None, start_child: StartChild
) -> RedisAddress:
    """Of ours, which is up then, or of the one given, for which the children wait."""
    if embedded is None:
        return settings.redis_address
    start_child(embedded.spec, embedded.answers)
    try:
        await embedded.wait_ready(within_s=REDIS_START_S)
    except TimeoutError as error:
        raise ChildFailed(f"redis: not up within {REDIS_START_S:.0f} s") from error
    return embedded.address


def _start_all(
    local: RunningCluster,
    flags: UpFlags,
    *,
    redis: RedisAddress,
    metrics_ports: Sequence[int],
    start_child: StartChild,
) -> None:
    settings = flags.settings
    env = {**gpu_share(settings, os.environ), **flags.child_env}
    workers = worker_specs(
        settings, redis=redis, cores=usable_cores(), metrics_ports=metrics_ports, env=env
    )
    for spec, port in zip(workers, metrics_ports, strict=True):
        start_child(spec, partial(http_answers, settings.loopback, port))
    router = router_spec(settings, redis=redis, port=local.port, env=flags.child_env)
    # One that refuses lives: it is full, and answers in the loop that serves.
    start_child(router, partial(http_answers, local.host, local.port, with_any=True))


async def _stop(local: RunningCluster, *, hurry: asyncio.Event) -> None:
    """Router first, so that running requests still have workers; Redis last."""
    settings = local.settings
    by_name = local.children
    workers = [child for name, child in by_name.items() if name not in ("router", "redis")]
    router = [by_name[name] for name in ("router",) if name in by_name]
    redis = [by_name[name] for name in ("redis",) if name in by_name]
    for stage in (router, workers, redis):
        for child in stage:
            child.stop()
        served = stage is not redis and any(child.was_ready for child in stage)
        linger_s = settings.linger_s if stage is router else 0.0
        within_s = KILL_AFTER_S + (linger_s + settings.drain_s if served else 0.0)
        if not await all_ended(stage, within_s=within_s, hurry=hurry):
            for child in stage:
                child.kill()


async def all_ended(children: Sequence[Child], *, within_s: float, hurry: asyncio.Event) -> bool:
    """Whether all ended before the deadline and before someone asked to hurry."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not all(child.ended.is_set() for child in children):
        if hurry.is_set() or asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def _answer(client: Any, path: str) -> Any | None:
    """What the router answers; None if it does not, or not with 200."""
    import httpx

    try:
        answer = await client.get(path)
    except httpx.HTTPError:
        return None
    return answer if answer.status_code == 200 else None
