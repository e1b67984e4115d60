"""`baton workers`: the workers of one node, supervised until told to stop.

As `baton up` without router and Redis. SIGINT or SIGTERM drains all at once; a second one hurries.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from controlplane.local.child import Child, ChildEvent, ChildSpec, OnChildEvent
from controlplane.local.cluster import KILL_AFTER_S, all_ended
from controlplane.local.display import Display
from controlplane.local.log_line import LogLine
from controlplane.local.node_status import NodeStatus
from controlplane.local.ports import kept_ports
from controlplane.local.specs import share_of_gpu, worker_names, worker_specs
from controlplane.local.up import SIGNALS, first_failure
from controlplane.local.watch import http_answers, watch
from controlplane.local.workers_settings import KV_PORTS, NodeFlags, NodeSettings, load_node
from protocol.process.listening import ANY_ADDRESS, bracketed
from protocol.process.machine import check_device, num_gpus, usable_cores
from protocol.process.run import Shutdown, ask_by_signals

POLL_S = 0.1


def workers(argv: Sequence[str]) -> None:
    """Raises SettingsError, CheckpointError or ChildFailed, whose messages are one line each."""
    flags = load_node(argv)
    try:
        asyncio.run(_serve(flags))
    except ExceptionGroup as group:
        raise first_failure(group) from None


async def _serve(flags: NodeFlags) -> None:
    settings = flags.settings
    display = Display(verbose=False)
    shutdown = Shutdown()
    try:
        ask_by_signals(shutdown, *SIGNALS)
        on_event = partial(_show, display, raw=settings.verbose)
        async with _running(flags, display, shutdown, on_event):
            await shutdown.asked.wait()
            display.stop("stopping; a second signal hurries")
        display.say("stopped")
    finally:
        display.close()


def _show(display: Display, event: ChildEvent, *, raw: bool) -> None:
    if raw and isinstance(event, LogLine):  # it names its process itself
        sys.stderr.write(f"{event.text}\n")
        sys.stderr.flush()
    else:
        display.on_event(event)


@asynccontextmanager
async def _running(
    flags: NodeFlags, display: Display, shutdown: Shutdown, on_event: OnChildEvent
) -> AsyncIterator[None]:
    settings = flags.settings
    names, local = worker_names(settings), _own_host(settings.host)
    with kept_ports(settings.host, 0, num=len(names), setting="metrics_port") as ports:
        addresses = {n: f"http://{bracketed(local)}:{p}" for n, p in zip(names, ports, strict=True)}
        status = NodeStatus(addresses)
        async with status.served(settings.host, settings.metrics_port):
            display.begin(_headline(settings, port=status.port))
            children: dict[str, Child] = {}
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(status.keep_looking(), name="status")
                note_ready = _note_ready(status, children, display, settings.api_name)
                noting = tasks.create_task(note_ready, name="note-ready")
                try:
                    for spec, port in zip(_specs(flags, ports), ports, strict=True):
                        child = children[spec.name] = Child(spec, on_event=on_event)
                        tasks.create_task(child.run(), name=spec.name)
                        if settings.hung_s:
                            answers = partial(http_answers, local, port)
                            watching = watch(child, answers, hung_s=settings.hung_s)
                            tasks.create_task(watching, name=f"watch {spec.name}")
                    yield
                finally:
                    await _stop(list(children.values()), settings, hurry=shutdown.hurry)
                    looking.cancel()
                    noting.cancel()


def _specs(flags: NodeFlags, ports: Sequence[int]) -> list[ChildSpec]:
    settings = flags.settings
    gpus = 0 if settings.device == "cpu" else num_gpus()
    if settings.device == "cuda" and not gpus:
        check_device("cuda")  # which says so
    names = worker_names(settings)
    most_on_one = -(-len(names) // gpus) if gpus else 1
    share = share_of_gpu(most_on_one, os.environ) if most_on_one > 1 else {}
    return worker_specs(
        settings,
        redis=settings.redis_address,
        cores=usable_cores(),
        metrics_ports=ports,
        env={**share, **flags.child_env},
        own_flags=[own_flags(settings, i, name, num_gpus=gpus) for i, name in enumerate(names)],
    )


def own_flags(settings: NodeSettings, index: int, name: str, *, num_gpus: int) -> dict[str, str]:
    """Of the worker of this number."""
    device = settings.device if not num_gpus else f"cuda:{index % num_gpus}"
    flags = {"worker": f"{settings.prefix}-{name}", "host": settings.host, "device": device}
    if settings.advertise:
        flags["advertise"] = settings.advertise
    ports = (("port", settings.port, 1), ("kv-port", settings.kv_port, KV_PORTS))
    return flags | {flag: str(first + stride * index) for flag, first, stride in ports if first}


async def _note_ready(
    status: NodeStatus, children: dict[str, Child], display: Display, model: str
) -> None:
    is_told = False
    while True:
        for name in status.ready & children.keys():
            children[name].was_ready = True
        if not is_told and len(status.ready) == status.num_workers:
            is_told = True
            display.settle()
            sys.stdout.write(f"Workers of {model} are ready: {', '.join(children)}\n")
            sys.stdout.flush()
        await asyncio.sleep(POLL_S)


async def _stop(children: Sequence[Child], settings: NodeSettings, *, hurry: asyncio.Event) -> None:
    """All at once: each hands over what it must to the workers of other nodes."""
    for child in children:
        child.stop()
    served = any(child.was_ready for child in children)
    within_s = KILL_AFTER_S + (settings.drain_s if served else 0.0)
    if not await all_ended(children, within_s=within_s, hurry=hurry):
        for child in children:
            child.kill()


def _own_host(host: str) -> str:
    """Where this process reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", ANY_ADDRESS: "127.0.0.1"}.get(host, host)


def _headline(settings: NodeSettings, *, port: int) -> str:
    pools = f"{settings.prefill} prefill + {settings.decode} decode"
    return f"Baton starts workers of {settings.api_name}: {pools}; metrics on port {port}"
