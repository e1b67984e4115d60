"""The router process from its first socket to its last request."""

import asyncio
import gc
import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from protocol.channel.link import WorkerLink
from protocol.channel.resolver import Resolver
from protocol.codec import SPOKEN_VERSIONS
from protocol.errors import StoreError
from protocol.formats.choose import check_formats
from protocol.ids import RouterId
from protocol.membership import watch_workers
from protocol.messages import Registration
from protocol.presence import RouterPresence
from protocol.process.machine import is_loopback, raise_descriptor_limit
from protocol.process.metrics import RouterMetrics
from protocol.process.run import Shutdown, load
from protocol.process.settings import split_keys
from protocol.store.responses import ResponseStore
from protocol.store.workers import RouterRecord, Store
from router.admission.fair_queue import QueueBounds
from router.admission.waiting_room import QueueLimits
from router.failover.stall import StallLimits
from router.fast_path.fast_path import make_fast_path
from router.http.app import OPEN_TO_ALL, create_app
from router.http.cluster import LocalCluster
from router.models.alias_file import watch_aliases
from router.models.kept_texts import KeptTexts, default_folder
from router.models.served import ServedModels
from router.models.snapshot import Aliases
from router.models.text_reading import ReadingRules
from router.models.texts import Texts
from router.placement.kernel import kernel
from router.placement.place import PlacementRules
from router.prefix.native.library import kernels
from router.prefix.prefix_index import PrefixIndex
from router.processes.siblings import Siblings
from router.processes.supervise import bound
from router.requests.dispatch import Dispatcher, DispatchLimits
from router.requests.trace import TraceRing
from router.runtime import ApiLimits, KeptResponses, Runtime, num_owners
from router.settings import RouterSettings
from router.tenants.tenancy import Tenancy
from router.watched_file import WatchedFile
from router.wire.limits import ConnectionLimits
from router.wire.listener import HttpServer, bound_connections
from router.workers.index_feed import IndexFeed
from router.workers.registry import Registry

BACKLOG = 2048
MEET_S = 2.0
"""One of several processes waits so long for a worker before it takes its share of connections."""
log = logging.getLogger("baton.router")


def listen(settings: RouterSettings) -> socket.socket:
    """The HTTP socket, before anything slow is done. One of several processes listens when it
    serves, not before: what it did not accept would wait for it, or be lost with it. SettingsError
    when it cannot be had."""
    listener = bound(settings, shared=settings.siblings is not None)
    if settings.siblings is None:
        listener.listen(BACKLOG)
    return listener


async def serve(settings: RouterSettings, stop: Shutdown) -> int:
    """Until asked to stop, then so long as `linger_s` and `drain_s` say. Redis is waited for, at
    the start as later."""
    descriptors = raise_descriptor_limit()
    bound = bound_connections(settings.max_connections, descriptors=descriptors)
    with listen(settings) as listener:
        check_formats(tools=settings.tool_format, reasoning=settings.reasoning_format)
        metrics = RouterMetrics()
        tenancy = _tenancy(settings, metrics)
        store, kept = Store(settings.redis_address), _kept_responses(settings, tenancy)
        try:
            await load(_load_kernels, stop)
            parts = _build(settings, store, kept, tenancy, metrics)
            host, port = listener.getsockname()[:2]
            limits = {"max_connections": bound, "descriptors": descriptors}
            log.info("listening", extra={"host": host, "port": port} | limits)
            if parts.runtime.is_open_to_network:
                log.warning("open to the network", extra={"why": OPEN_TO_ALL, "host": host})
            server = _http_server(
                settings, parts.runtime, max_connections=bound, end_requests=parts.end_requests
            )
            await _run(settings, parts, store, server, listener, stop)
        finally:
            with suppress(StoreError):
                await store.close()
            if kept is not None:
                with suppress(StoreError):
                    await kept.store.close()
            if tenancy is not None:
                await tenancy.close()
    return stop.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    presence: RouterPresence
    runtime: Runtime
    registry: Registry
    feed: IndexFeed
    dispatcher: Dispatcher
    cluster: LocalCluster
    models: ServedModels
    aliases: WatchedFile[Aliases] | None
    tenancy: Tenancy | None

    def end_requests(self) -> None:
        """Wherever they wait, each fails with RouterEnds."""
        self.dispatcher.end_requests()
        self.models.end_waits()


def _load_kernels() -> None:
    """Builds them where this machine has not: seconds, for which no stream, ping or probe waits."""
    kernels()
    kernel()


def _tenancy(settings: RouterSettings, metrics: RouterMetrics) -> Tenancy | None:
    if settings.keys_file is None:
        return None
    return Tenancy(settings.keys_file, redis=settings.redis_address, metrics=metrics)


def _kept_responses(settings: RouterSettings, tenancy: Tenancy | None) -> KeptResponses | None:
    if settings.store_responses == "never":
        return None

    def share() -> int:
        keys = None if tenancy is None else tenancy.keys
        return settings.store_bytes // num_owners(settings.api_keys, keys)

    store = ResponseStore(settings.redis_address, ttl_s=settings.store_ttl_s, max_bytes=share)
    return KeptResponses(store=store, by_default=settings.store_responses == "always")


def _models(
    settings: RouterSettings, registry: Registry, metrics: RouterMetrics
) -> tuple[ServedModels, WatchedFile[Aliases] | None]:
    rules = ReadingRules(
        tool_format=settings.tool_format,
        reasoning_format=settings.reasoning_format,
        has_sampling_defaults=settings.generation_config == "auto",
        specials_in_chats=settings.special_tokens_in_content,
    )
    texts = Texts(registry, rules=rules, kept=KeptTexts(default_folder()), metrics=metrics)
    models = ServedModels(registry, texts, patience_s=settings.patience_s)
    if settings.aliases_file is None:
        return models, None
    return models, watch_aliases(settings.aliases_file, models.use_aliases, metrics)


def _build(
    settings: RouterSettings,
    store: Store,
    kept: KeptResponses | None,
    tenancy: Tenancy | None,
    metrics: RouterMetrics,
) -> _Parts:
    router = RouterId(f"router-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    resolver = Resolver()

    def connect(registration: Registration) -> WorkerLink:
        return WorkerLink(
            address=registration.address,
            router=router,
            resolver=resolver,
            num_links=lambda: registry.num_workers,
            version=registration.wire,
        )

    index, traces = PrefixIndex(max_blocks=settings.index_blocks), TraceRing()
    registry = Registry(
        connect=connect,
        router=router,
        fast_path=make_fast_path(metrics.between_tokens_s),
    )
    feed = IndexFeed(store=store, index=index, registry=registry, metrics=metrics)
    models, aliases = _models(settings, registry, metrics)
    cluster = LocalCluster(
        router=router, registry=registry, index=index, feed=feed, traces=traces, metrics=metrics,
        patience_s=settings.patience_s, why_no_text=models.why_no_text,
    )  # fmt: skip
    dispatcher = Dispatcher(
        registry=registry,
        index=index,
        metrics=metrics,
        traces=traces,
        limits=_dispatch_limits(settings),
    )
    runtime = _runtime(settings, models, dispatcher, cluster, metrics, kept, tenancy)
    gc.collect()
    gc.freeze()  # else each full collection looks through all that was loaded: 47 ms (docs/lab.md)
    return _Parts(
        presence=RouterPresence(store, RouterRecord(router=router, wires=SPOKEN_VERSIONS)),
        runtime=runtime,
        registry=registry,
        feed=feed,
        dispatcher=dispatcher,
        cluster=cluster,
        models=models,
        aliases=aliases,
        tenancy=tenancy,
    )


def _dispatch_limits(settings: RouterSettings) -> DispatchLimits:
    return DispatchLimits(
        max_attempts=settings.max_attempts,
        patience_s=settings.patience_s,
        retry_share=settings.retry_share,
        stalls=StallLimits(
            first_token_s=settings.first_token_stall_s,
            next_token_s=settings.next_token_stall_s,
        ),
        queue=QueueLimits(
            bounds=QueueBounds(
                num_requests=settings.max_queue, num_tokens=settings.max_queue_tokens
            ),
            max_wait_s=settings.max_queue_wait_s,
        ),
        rules=PlacementRules(
            policy=settings.policy,
            local_prefill=settings.local_prefill,
            inter_token_target_s=settings.inter_token_target_s,
            worker_queue_s=settings.worker_queue_s,
            session_slack_s=settings.session_slack_s,
        ),
    )


def _runtime(
    settings: RouterSettings,
    models: ServedModels,
    dispatcher: Dispatcher,
    cluster: LocalCluster,
    metrics: RouterMetrics,
    kept: KeptResponses | None,
    tenancy: Tenancy | None,
) -> Runtime:
    is_local, hosts = is_loopback(settings.host), split_keys(settings.hosts.lower())
    return Runtime(
        models=models,
        dispatcher=dispatcher,
        cluster=cluster,
        metrics=metrics,
        api_keys=settings.api_keys,
        keys=None if tenancy is None else tenancy.keys,
        rate_limits=None if tenancy is None else tenancy.limits,
        local_names=frozenset(hosts) if is_local and not settings.has_keys else None,
        cors_origins=frozenset(split_keys(settings.cors_origins)),
        is_open_to_network=not is_local and not settings.has_keys,
        limits=ApiLimits(
            max_body_bytes=settings.max_body_bytes,
            max_bodies_bytes=settings.max_bodies_bytes,
            max_in_flight=settings.max_in_flight,
            max_lag_bytes=settings.max_lag_bytes,
            request_timeout_s=settings.request_timeout_s,
            clamp_max_tokens=settings.clamp_max_tokens,
        ),
        kept_responses=kept,
        siblings=None
        if settings.siblings is None
        else Siblings(settings.siblings, process=settings.process),
        tokenize_threads=settings.tokenize_threads,
    )


def _http_server(
    settings: RouterSettings,
    runtime: Runtime,
    *,
    max_connections: int,
    end_requests: Callable[[], None],
) -> HttpServer:
    return HttpServer(
        create_app(runtime),
        metrics=runtime.metrics,
        limits=ConnectionLimits(
            head_timeout_s=settings.head_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            write_timeout_s=runtime.limits.write_timeout_s,
            last_idle_s=settings.linger_s,
        ),
        max_connections=max_connections,
        drain_s=settings.drain_or_request_s,
        end_requests=end_requests,
    )


async def _run(
    settings: RouterSettings,
    parts: _Parts,
    store: Store,
    server: HttpServer,
    listener: socket.socket,
    stop: Shutdown,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        presence = tasks.create_task(parts.presence.run(), name="presence")
        background = [
            tasks.create_task(parts.registry.run(watch_workers(store)), name="registry"),
            tasks.create_task(parts.models.run(), name="texts"),
            tasks.create_task(parts.feed.run(), name="index feed"),
            tasks.create_task(parts.dispatcher.watch(), name="watchdog"),
            tasks.create_task(server.hurry_when_asked(stop), name="hurry"),
        ]
        if parts.aliases is not None:
            background.append(tasks.create_task(parts.aliases.run(), name="aliases file"))
        if parts.tenancy is not None:
            background.append(tasks.create_task(parts.tenancy.run(), name="tenants"))
        if parts.runtime.siblings is not None:
            await _meet_workers(parts.models, stop)
        serving = tasks.create_task(server.serve(sockets=[listener]), name="http")
        serving.add_done_callback(lambda _: stop.asked.set())
        await stop.asked.wait()
        parts.cluster.drain()
        presence.cancel()
        tasks.create_task(parts.presence.leave(), name="leave")
        lingers = {"linger_s": settings.linger_s, "drain_s": settings.drain_or_request_s}
        log.info("draining", extra=lingers)
        await server.linger(settings.linger_s)
        await serving
        for task in background:
            task.cancel()


async def _meet_workers(models: ServedModels, stop: Shutdown) -> None:
    """Until a request would be served, for MEET_S at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MEET_S):
            while models.not_ready() is not None and not stop.asked.is_set():
                await models.wait_change(timeout_s=MEET_S)
