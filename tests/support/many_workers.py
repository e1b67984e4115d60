"""A registry and more workers than it may have sockets for, or as many as it must have.

    python -m support.many_workers NUM_WORKERS DESCRIPTORS

The workers share this process's memory and a thread, not its limit of open files: they live in a
child. Prints a JSON object: how many are ready, why the others are not, and whether one more that
comes when some have gone is met.
"""

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection

import msgspec
import zmq
from support.words import beat, registration

from protocol.channel.link import MAX_SOCKETS, WorkerLink
from protocol.channel.resolver import Resolver
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.ids import RouterId
from protocol.membership import Roster
from protocol.messages import Hello, Registration, Welcome
from protocol.process.machine import raise_descriptor_limit
from router.workers.registry import Registry

WITHIN_S = 60.0


def serve_workers(num_workers: int, told: Connection) -> None:
    """Answers Hello on as many ports, and beats once a second."""
    raise_descriptor_limit()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    poller, made = zmq.Poller(), []
    for number in range(num_workers):
        port: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        at = port.bind_to_random_port("tcp://127.0.0.1")
        here = registration(f"decode-{number}", address=f"tcp://127.0.0.1:{at}")
        made.append((port, to_router.encode(Welcome(registration=here, version=WIRE_VERSION))))
        poller.register(port, zmq.POLLIN)
        told.send_bytes(msgspec.msgpack.encode(here))
    told.send_bytes(b"")
    welcomes, beaten = dict(made), to_router.encode(beat())
    routers: dict[zmq.Socket[bytes], bytes] = {}
    due = time.monotonic()
    while True:
        for port, _ in poller.poll(200):
            router, frame = port.recv_multipart()
            if isinstance(to_worker.decode(frame), Hello):
                routers[port] = router
                port.send_multipart([router, welcomes[port]])
                port.send_multipart([router, beaten])
        if time.monotonic() > due:
            due = time.monotonic() + 1.0
            for port, router in routers.items():
                port.send_multipart([router, beaten])


async def meet(registrations: list[Registration]) -> dict[str, object]:
    resolver, here = Resolver(), list(registrations)
    registry = Registry(
        connect=lambda one: WorkerLink(
            address=one.address, router=RouterId("router"), resolver=resolver
        )
    )

    async def rosters() -> AsyncIterator[Roster]:
        while True:
            yield Roster(workers=tuple(here))
            await asyncio.sleep(0.5)

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(registry.run(rosters()), name="registry")
        deadline, settled_at, before = time.monotonic() + WITHIN_S, time.monotonic(), -1
        while time.monotonic() < min(deadline, settled_at + 4.0):
            ready = len(registry.ready_workers())
            if ready != before:
                settled_at, before = time.monotonic(), ready
            if ready == len(here):
                break
            await asyncio.sleep(0.1)
        whys = Counter(w.why.partition(": ")[2] for w in registry.workers if not w.is_ready)
        alive = not running.done()
        running.cancel()
    return {"ready": before, "why": dict(whys), "alive": alive}


def main() -> None:
    num_workers, descriptors = map(int, sys.argv[1:])
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=serve_workers, args=(num_workers, theirs), daemon=True)
    child.start()
    registrations = []
    while packed := ours.recv_bytes():
        registrations.append(msgspec.msgpack.decode(packed, type=Registration))
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    raise_descriptor_limit()
    try:
        print(json.dumps(asyncio.run(meet(registrations))), flush=True)
    finally:
        child.kill()


if __name__ == "__main__":
    main()
