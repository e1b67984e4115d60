"""A registry with one worker it can reach and one under a name that is never answered.

    unshare ... python -m support.silent_resolver

Where /etc/resolv.conf names 127.0.0.1 and nobody else listens there. Prints a JSON object: for
how many of its looks the good worker was ready, how many there were, and why the other is not.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

from support.eventually import soon
from support.fabric import Fabric
from support.fake_worker import FakeWorker
from support.words import registration

from protocol.channel.link import WorkerLink
from protocol.channel.resolver import Resolver
from protocol.ids import RouterId
from protocol.membership import Roster
from protocol.messages import Registration
from router.workers.registry import Registry

LOOKS = 45


async def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 53))
        resolver = Resolver()
        registry = Registry(
            connect=lambda one: WorkerLink(
                address=one.address, router=RouterId("router"), resolver=resolver
            )
        )
        async with asyncio.TaskGroup() as tasks:
            good = FakeWorker("decode-0", "decode", Fabric())
            slow = registration("decode-1", address="tcp://never.example:1")
            running = [
                tasks.create_task(good.run(), name="good"),
                tasks.create_task(registry.run(_both(good.registration, slow)), name="registry"),
            ]
            await soon(lambda: bool(registry.ready_workers()))
            ready = 0
            for _ in range(LOOKS):  # longer than a link may be silent
                await asyncio.sleep(0.1)
                ready += [w.id for w in registry.ready_workers()] == ["decode-0"]
            (other,) = [w for w in registry.workers if w.id == "decode-1"]
            print(json.dumps({"ready": ready, "looks": LOOKS, "why": other.why}))
            for task in running:
                task.cancel()


async def _both(*registrations: Registration) -> AsyncIterator[Roster]:
    while True:
        yield Roster(workers=registrations)
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(main())
