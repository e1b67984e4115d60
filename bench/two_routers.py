"""Whether routers that share workers pile onto one, because neither sees the other's choice.

    python -m bench.two_routers [--routers 2] [--workers 16] [--load 0.6] [--seconds 10]

Real dispatchers, links and worker lifecycles over sockets in one process; behind each worker stands
a queue that serves one request after another in `--service-ms`. Requests come at random, to each
router as many, all of them unlike. Once with the reports between beats and once without.
"""

import argparse
import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import uvloop

import worker.reported.reports
from bench.record import percentiles, record
from protocol.channel.link import WorkerLink
from protocol.channel.port import RouterPort
from protocol.codec import WIRE_VERSION
from protocol.ids import Epoch, RequestId, RouterId, WorkerId
from protocol.layout import KvLayout
from protocol.membership import Membership, Roster
from protocol.messages import (
    Beat,
    Blocks,
    Computation,
    Emit,
    Failed,
    Finished,
    Load,
    Registration,
    Sampling,
    Speeds,
    Step,
    StepModel,
    Token,
    WorkerState,
)
from protocol.process.metrics import RouterMetrics, WorkerMetrics
from protocol.process.run import Shutdown
from protocol.store.workers import RouterRecord
from protocol.text.packed_text import PackedText
from router.prefix.prefix_index import PrefixIndex
from router.requests.dispatch import Dispatcher
from router.requests.events import GenerationRequest, Read, Route
from router.requests.trace import TraceRing
from router.workers.registry import Registry
from worker.lifecycle import Lifecycle
from worker.service import EngineService

PROMPT_TOKENS = 512
LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=16, dtype="bfloat16")


class QueueService:
    """As `worker.service.EngineService`: serves one request at a time, each in `service_s`; None:
    none ever ends."""

    def __init__(self, port: RouterPort, *, service_s: float | None) -> None:
        self._port = port
        self._service_s = service_s
        self.held: deque[tuple[RouterId, Computation]] = deque()
        self._serving: asyncio.Task[None] | None = None

    def beat(self, state: WorkerState) -> Beat:
        num_held, token_s = len(self.held), (self._service_s or 0.05) / PROMPT_TOKENS
        return Beat(
            epoch=Epoch(1),
            state=state,
            blocks=Blocks(total=100_000, free=100_000 - 40 * num_held, cached=0, leased=0),
            load=Load(
                running=min(1, num_held),
                waiting=max(0, num_held - 1),
                waiting_tokens=PROMPT_TOKENS * num_held,
            ),
            speeds=Speeds(
                prefill_tokens_per_s=1 / token_s, decode_step_s=0.01, transfer_bytes_per_s=1e9,
                step=StepModel(fixed_s=1e-4, token_s=token_s, sequence_s=1e-5),
            ),
            transports_used=(),
        )  # fmt: skip

    def accept_request(self, router: RouterId, message: Computation) -> None:
        self.held.append((router, message))
        if self._service_s is not None and self._serving is None:
            self._serving = asyncio.get_running_loop().create_task(self._serve(), name="serve")

    async def _serve(self) -> None:
        assert self._service_s is not None
        while self.held:
            await asyncio.sleep(self._service_s)
            router, message = self.held.popleft()
            for word in _answer(message):
                self._port.send(router, word)
        self._serving = None

    def is_idle(self) -> bool:
        return True

    def engine_turn_s(self) -> float:
        return 0.0

    def refuse_request(self, router: RouterId, message: Computation, why: Failed) -> None: ...
    def abort_request(self, router: RouterId, request: RequestId, attempt: int) -> None: ...
    def forget_router(self, router: RouterId) -> None: ...
    def expire_requests(self, now: float) -> None: ...
    def end_all_requests(self, why: str) -> None: ...


def _answer(message: Computation) -> tuple[Step, Finished]:
    name = {"request": message.request, "attempt": message.attempt}
    token = Emit(**name, index=0, token_id=1, text="x", logprob=None, top=())  # type: ignore[arg-type]
    finished = Finished(
        **name, reason="length", num_tokens=1, cached_tokens=0, queued_s=0.0,  # type: ignore[arg-type]
        prefill_s=0.0, decode_s=0.0,
    )  # fmt: skip
    return Step(emits=(token,)), finished


class _NoMembership:
    store_is_up, num_dropped_events = True, 0

    async def run(self, registration: object, beat: object) -> None: ...
    async def leave(self) -> None: ...

    async def list_routers(self) -> tuple[RouterRecord, ...]:
        return ()


class Router:
    """One of several, but for HTTP and Redis."""

    def __init__(self, name: str) -> None:
        self._name = RouterId(name)
        self.registry = Registry(connect=self._connect, router=self._name)
        self.dispatcher = Dispatcher(
            registry=self.registry,
            index=PrefixIndex(),
            metrics=RouterMetrics(),
            traces=TraceRing(),
        )

    def _connect(self, one: Registration) -> WorkerLink:
        links = self.registry
        return WorkerLink(
            address=one.address, router=self._name, num_links=lambda: links.num_workers
        )

    def request(self, number: int) -> GenerationRequest:
        """One that is like no other."""
        return GenerationRequest(
            id=RequestId(f"{self._name}.{number}"),
            token_ids=tuple(random.Random(f"{self._name} {number}").choices(range(1000), k=512)),
            sampling=Sampling(seed=1, max_tokens=1, ignore_eos=True),
            salt="",
            deadline_s=60.0,
        )


class Placed:
    """A listener that keeps where its request went."""

    def __init__(self) -> None:
        self.decode: WorkerId | None = None

    def placed(self, route: Route) -> None:
        self.decode = route.decode

    def read(self, read: Read) -> None: ...
    def token(self, token: Token) -> None: ...


@asynccontextmanager
async def fleet(
    *, num_routers: int, num_workers: int, service_s: float | None
) -> AsyncIterator[tuple[list[Router], dict[WorkerId, QueueService]]]:
    """Routers that have met all workers, which all decode and prefill their own."""
    services: dict[WorkerId, QueueService] = {}
    routers = [Router(f"router-{number}") for number in range(num_routers)]
    registrations: list[Registration] = []
    shutdown = Shutdown()

    async def rosters() -> AsyncIterator[Roster]:
        yield Roster(workers=tuple(registrations))
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_workers):
            port = RouterPort()
            here = _registration(f"decode-{number}", port.port)
            service = services[here.worker] = QueueService(port, service_s=service_s)
            lifecycle = Lifecycle(
                cast(EngineService, service), port=port, text=PackedText("bench", b""),
                membership=cast(Membership, _NoMembership()), metrics=WorkerMetrics(),
                shutdown=shutdown, drain_s=0.0,
            )  # fmt: skip
            registrations.append(here)
            tasks.create_task(lifecycle.run(here), name=here.worker)
        meeting = [
            tasks.create_task(router.registry.run(rosters()), name="registry") for router in routers
        ]
        async with asyncio.timeout(30):
            for router in routers:
                while len(router.registry.ready_workers()) < num_workers:
                    await router.registry.wait_change(timeout_s=30)
        yield routers, services
        for task in meeting:
            task.cancel()
        shutdown.ask("the run is over")


def _registration(name: str, port: int) -> Registration:
    return Registration(
        worker=WorkerId(name), epoch=Epoch(1), role="decode", pid=1, host="127.0.0.1",
        address=f"tcp://127.0.0.1:{port}", model="bench", compat="same", layout=LAYOUT,
        num_blocks=100_000, max_context_tokens=32_768, transports=("shm",),
        max_step_tokens=PROMPT_TOKENS, text="bench", wire=WIRE_VERSION,
    )  # fmt: skip


class Run:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        """From arrival to the end of each request."""
        self.num_piled = 0
        """Requests that went to a worker with others before them while one had none."""

    async def serve(
        self, router: Router, services: dict[WorkerId, QueueService], number: int
    ) -> None:
        empty = {name for name, service in services.items() if not service.held}
        began_s, placed = time.monotonic(), Placed()
        await router.dispatcher.generate(router.request(number), placed)
        self.seconds.append(time.monotonic() - began_s)
        self.num_piled += bool(empty) and placed.decode not in empty


async def measured(options: argparse.Namespace) -> Run:
    run, service_s = Run(), options.service_ms / 1e3
    rate = options.load * options.workers / service_s
    chance = random.Random(1)
    async with (
        fleet(num_routers=options.routers, num_workers=options.workers, service_s=service_s) as (
            routers,
            services,
        ),
        asyncio.TaskGroup() as tasks,
    ):
        due_s, ends_s = time.monotonic(), time.monotonic() + options.seconds
        number = 0
        while due_s < ends_s:
            due_s += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            router = routers[number % len(routers)]
            tasks.create_task(run.serve(router, services, number), name=f"request {number}")
            number += 1
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--service-ms", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    results: dict[str, object] = {}
    for reports, burst in (("with", worker.reported.reports.BURST), ("without", 0.0)):
        worker.reported.reports.BURST = burst
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            run = runner.run(measured(options))
        results[f"{reports}_reports"] = {
            "requests": len(run.seconds),
            "piled_share": round(run.num_piled / len(run.seconds), 4),
            "seconds": percentiles(run.seconds),
        }
    record("two_routers", conditions=vars(options), results=results)


if __name__ == "__main__":
    main()
