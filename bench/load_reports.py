"""What a router spends on the beats and load reports of many workers.

    python -m bench.load_reports [--workers 1000] [--seconds 10] [--reports-per-s 1000]

The workers live in one process and say what workers say, at the rates given; this one holds a real
registry with a link to each. CPU seconds of this process, without reports and with them: a busy
machine does not change their difference much.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection

import msgspec
import uvloop
import zmq

from bench.record import record
from protocol.channel.link import WorkerLink
from protocol.channel.resolver import Resolver
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.ids import Epoch, RouterId, WorkerId
from protocol.layout import KvLayout
from protocol.membership import Roster
from protocol.messages import (
    Beat,
    Blocks,
    Hello,
    Load,
    LoadReport,
    Registration,
    Speeds,
    Welcome,
)
from protocol.process.machine import raise_descriptor_limit
from router.workers.registry import Registry
from worker.lifecycle import BEAT_S

LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=16, dtype="bfloat16")
BEAT = Beat(
    epoch=Epoch(1),
    state="ready",
    blocks=Blocks(total=4096, free=1000, cached=2000, leased=0),
    load=Load(running=20, waiting=3, waiting_tokens=9000, context_tokens=40_000),
    speeds=Speeds(prefill_tokens_per_s=9e3, decode_step_s=0.02, transfer_bytes_per_s=1e9),
    transports_used=(),
)
REPORT = LoadReport(
    num_received=100, running=20, waiting=3, waiting_tokens=9000, context_tokens=40_000,
    num_free_blocks=3000,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--reports-per-s", type=float, default=1000.0)
    options = parser.parse_args()
    raise_descriptor_limit()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=_say, args=(options.workers, theirs), daemon=True)
    child.start()
    try:
        registrations = [
            msgspec.msgpack.decode(ours.recv_bytes(), type=Registration)
            for _ in range(options.workers)
        ]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            spent = runner.run(_measured(registrations, ours, options))
    finally:
        child.kill()
    beats_s, both_s = spent
    per_report_s = (both_s - beats_s) / options.reports_per_s
    record(
        "load_reports",
        conditions=vars(options) | {"beat_s": BEAT_S},
        results={
            "core_share_of_beats": round(beats_s, 4),
            "core_share_with_reports": round(both_s, 4),
            "us_per_report": round(per_report_s * 1e6, 1),
        },
    )


async def _measured(
    registrations: list[Registration], workers: Connection, options: argparse.Namespace
) -> tuple[float, float]:
    """Shares of a core: of beats alone, and with so many reports a second besides."""
    resolver, router = Resolver(), RouterId("router")

    def connect(one: Registration) -> WorkerLink:
        return WorkerLink(address=one.address, router=router, resolver=resolver)

    async def rosters() -> AsyncIterator[Roster]:
        yield Roster(workers=tuple(registrations))
        await asyncio.Event().wait()

    registry, shares = Registry(connect=connect), []
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(registry.run(rosters()), name="registry")
        async with asyncio.timeout(60):
            while len(registry.ready_workers()) < len(registrations):
                await registry.wait_change(timeout_s=60)
        for rate in (0.0, options.reports_per_s):
            workers.send(rate)
            await asyncio.sleep(1.0)
            began_s, cpu_s = time.monotonic(), time.process_time()
            await asyncio.sleep(options.seconds)
            shares.append((time.process_time() - cpu_s) / (time.monotonic() - began_s))
        running.cancel()
    return shares[0], shares[1]


def _say(num_workers: int, told: Connection) -> None:
    """In a process of its own: beats, and reports as often as it is told."""
    raise_descriptor_limit()
    context, poller = zmq.Context(), zmq.Poller()
    context.set(zmq.MAX_SOCKETS, 4 * num_workers)
    ports = [context.socket(zmq.ROUTER) for _ in range(num_workers)]
    welcomes, beat, report = {}, to_router.encode(BEAT), to_router.encode(REPORT)
    for number, port in enumerate(ports):
        at = port.bind_to_random_port("tcp://127.0.0.1")
        here = _registration(f"decode-{number}", at)
        welcomes[port] = to_router.encode(Welcome(registration=here, version=WIRE_VERSION))
        poller.register(port, zmq.POLLIN)
        told.send_bytes(msgspec.msgpack.encode(here))
    routers: dict[zmq.Socket[bytes], bytes] = {}
    rate, num_said, num_beats, began = 0.0, 0, 0, time.monotonic()
    while True:
        if told.poll():
            rate, num_said, num_beats, began = told.recv(), 0, 0, time.monotonic()
        for port, _ in poller.poll(2):
            router, frame = port.recv_multipart()
            if isinstance(to_worker.decode(frame), Hello):
                routers[port] = router
                port.send_multipart([router, welcomes[port]])
                port.send_multipart([router, beat])
        passed_s, heard = time.monotonic() - began, list(routers.items())
        while heard and num_beats < passed_s * len(heard) / BEAT_S:
            port, router = heard[num_beats % len(heard)]
            port.send_multipart([router, beat])
            num_beats += 1
        while heard and num_said < passed_s * rate:
            port, router = heard[num_said % len(heard)]
            port.send_multipart([router, report])
            num_said += 1


def _registration(worker: str, port: int) -> Registration:
    return Registration(
        worker=WorkerId(worker),
        epoch=Epoch(1),
        role="decode",
        pid=1,
        host="127.0.0.1",
        address=f"tcp://127.0.0.1:{port}",
        model="bench",
        compat="same",
        layout=LAYOUT,
        num_blocks=4096,
        max_context_tokens=32_768,
        transports=("shm",),
        text="bench",
        wire=WIRE_VERSION,
    )


if __name__ == "__main__":
    main()
