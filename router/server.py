"""The router process from its first socket to its last request."""

import asyncio
import gc
import logging
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

from protocol.channel.link import WorkerLink
from protocol.channel.resolver import Resolver
from protocol.errors import StoreError
from protocol.formats.choose import choose_formats
from protocol.formats.formats import Formats
from protocol.ids import RouterId
from protocol.membership import watch_workers
from protocol.messages import Registration
from protocol.process.machine import is_loopback, raise_descriptor_limit
from protocol.process.metrics import RouterMetrics
from protocol.process.model_folder import resolve_model
from protocol.process.run import Shutdown, load
from protocol.process.settings import split_keys
from protocol.store.responses import ResponseStore
from protocol.store.workers import Store
from protocol.text.description import describe_tokenizer
from protocol.text.pooling_config import read_pooling_config
from protocol.text.sampling_defaults import SamplingDefaults, read_sampling_defaults
from protocol.text.tokenizer import Tokenizer
from router.admission.fair_queue import QueueBounds
from router.admission.waiting_room import QueueLimits
from router.failover.stall import StallLimits
from router.fast_path.fast_path import make_fast_path
from router.http.app import OPEN_TO_ALL, create_app
from router.http.cluster import LocalCluster
from router.placement.kernel import kernel
from router.placement.place import PlacementRules
from router.prefix.native.library import kernels
from router.prefix.prefix_index import PrefixIndex
from router.processes.siblings import Siblings
from router.processes.supervise import bound
from router.requests.dispatch import Dispatcher, DispatchLimits
from router.requests.replay import already_ended
from router.requests.trace import TraceRing
from router.runtime import ApiLimits, KeptResponses, Runtime, num_owners
from router.settings import RouterSettings
from router.tenants.tenancy import Tenancy
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
    """Until asked to stop, then until the requests are done or `drain_s` is over. Raises
    StoreError when Redis cannot be reached at the start; later that is no error."""
    descriptors = raise_descriptor_limit()
    bound = bound_connections(settings.max_connections, descriptors=descriptors)
    with listen(settings) as listener:
        folder = await load(partial(resolve_model, settings.model, weights=False), stop)
        settings = settings.model_copy(update=folder.settings(served_name=settings.served_name))
        tokenizer = await load(
            partial(
                Tokenizer.load,
                settings.model,
                max_model_len=settings.max_model_len,
                specials_in_chats=settings.special_tokens_in_content,
            ),
            stop,
        )
        defaults = _sampling_defaults(settings)
        metrics = RouterMetrics()
        tenancy = _tenancy(settings, metrics)
        store, kept = Store(settings.redis_address), _kept_responses(settings, tenancy)
        try:
            await store.ping()
            await load(_load_kernels, stop)
            parts = _build(settings, store, tokenizer, defaults, kept, tenancy, metrics)
            host, port = listener.getsockname()[:2]
            limits = {"max_connections": bound, "descriptors": descriptors}
            where = {"host": host, "port": port, "model": settings.api_name}
            log.info("listening", extra=where | limits)
            if parts.runtime.is_open_to_network:
                log.warning("open to the network", extra={"why": OPEN_TO_ALL, "host": host})
            server = _http_server(settings, parts.runtime, max_connections=bound)
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
    runtime: Runtime
    registry: Registry
    feed: IndexFeed
    dispatcher: Dispatcher
    cluster: LocalCluster
    tenancy: Tenancy | None


def _load_kernels() -> None:
    """Builds them where this machine has not: seconds, for which no stream, ping or probe waits."""
    kernels()
    kernel()


def _tenancy(settings: RouterSettings, metrics: RouterMetrics) -> Tenancy | None:
    if settings.keys_file is None:
        return None
    return Tenancy(settings.keys_file, redis=settings.redis_address, metrics=metrics)


def _sampling_defaults(settings: RouterSettings) -> SamplingDefaults:
    if settings.generation_config == "none":
        return SamplingDefaults()
    defaults = read_sampling_defaults(settings.model)
    log.info("sampling defaults", extra=asdict(defaults))
    return defaults


def _kept_responses(settings: RouterSettings, tenancy: Tenancy | None) -> KeptResponses | None:
    if settings.store_responses == "never":
        return None

    def share() -> int:
        keys = None if tenancy is None else tenancy.keys
        return settings.store_bytes // num_owners(settings.api_keys, keys)

    store = ResponseStore(settings.redis_address, ttl_s=settings.store_ttl_s, max_bytes=share)
    return KeptResponses(store=store, by_default=settings.store_responses == "always")


def _formats(settings: RouterSettings, tokenizer: Tokenizer) -> Formats:
    formats = choose_formats(
        tokenizer, tools=settings.tool_format, reasoning=settings.reasoning_format
    )
    names = {"tool_format": formats.tool_format, "reasoning_format": formats.reasoning_format}
    log.info("formats", extra=names)
    return formats


def _build(
    settings: RouterSettings,
    store: Store,
    tokenizer: Tokenizer,
    defaults: SamplingDefaults,
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
        )

    index, traces = PrefixIndex(max_blocks=settings.index_blocks), TraceRing()
    registry = Registry(
        connect=connect,
        model=settings.api_name,
        router=router,
        fast_path=make_fast_path(metrics.between_tokens_s),
    )
    feed = IndexFeed(store=store, index=index, registry=registry, metrics=metrics)
    cluster = LocalCluster(
        router=router, registry=registry, index=index, feed=feed, traces=traces, metrics=metrics
    )
    dispatcher = Dispatcher(
        registry=registry,
        index=index,
        metrics=metrics,
        traces=traces,
        already_ended=partial(already_ended, tokenizer),
        limits=_dispatch_limits(settings),
    )
    runtime = _runtime(settings, tokenizer, defaults, dispatcher, cluster, metrics, kept, tenancy)
    gc.collect()
    gc.freeze()  # else each full collection looks through all that was loaded: 47 ms (docs/lab.md)
    return _Parts(
        runtime=runtime,
        registry=registry,
        feed=feed,
        dispatcher=dispatcher,
        cluster=cluster,
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
    tokenizer: Tokenizer,
    defaults: SamplingDefaults,
    dispatcher: Dispatcher,
    cluster: LocalCluster,
    metrics: RouterMetrics,
    kept: KeptResponses | None,
    tenancy: Tenancy | None,
) -> Runtime:
    is_local, hosts = is_loopback(settings.host), split_keys(settings.hosts.lower())
    return Runtime(
        model=settings.api_name,
        tokenizer=tokenizer,
        formats=_formats(settings, tokenizer),
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
        sampling_defaults=defaults,
        tokenizer_description=describe_tokenizer(settings.model),
        kept_responses=kept,
        pooling=read_pooling_config(settings.model),
        siblings=None
        if settings.siblings is None
        else Siblings(settings.siblings, process=settings.process),
        tokenize_threads=settings.tokenize_threads,
    )


def _http_server(settings: RouterSettings, runtime: Runtime, *, max_connections: int) -> HttpServer:
    return HttpServer(
        create_app(runtime),
        metrics=runtime.metrics,
        limits=ConnectionLimits(
            head_timeout_s=settings.head_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            write_timeout_s=runtime.limits.write_timeout_s,
        ),
        max_connections=max_connections,
        drain_s=settings.drain_s,
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
        background = [
            tasks.create_task(parts.registry.run(watch_workers(store)), name="registry"),
            tasks.create_task(parts.feed.run(), name="index feed"),
            tasks.create_task(parts.dispatcher.watch(), name="watchdog"),
            tasks.create_task(server.hurry_when_asked(stop), name="hurry"),
        ]
        if parts.tenancy is not None:
            background.append(tasks.create_task(parts.tenancy.run(), name="tenants"))
        if parts.runtime.siblings is not None:
            await _meet_workers(parts.registry, stop)
        serving = tasks.create_task(server.serve(sockets=[listener]), name="http")
        serving.add_done_callback(lambda _: stop.asked.set())
        await stop.asked.wait()
        parts.cluster.drain()
        log.info("draining", extra={"drain_s": settings.drain_s})
        server.should_exit = True
        await serving
        for task in background:
            task.cancel()


async def _meet_workers(registry: Registry, stop: Shutdown) -> None:
    """Until a request would be served, for MEET_S at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MEET_S):
            while registry.not_ready() is not None and not stop.asked.is_set():
                await registry.wait_change(timeout_s=MEET_S)
