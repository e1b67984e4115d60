"""A registry, an index and a dispatcher before fake workers: the router but HTTP and Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from support.eventually import soon
from support.fabric import Fabric
from support.fake_worker import Act, FakeWorker, already_ended

from protocol.channel.link import WorkerLink
from protocol.ids import RequestId, RouterId
from protocol.membership import Roster
from protocol.messages import Registration, Role, Sampling, ServedVersion, Token
from protocol.process.metrics import RouterMetrics
from protocol.readings import PromptReading, TokenScore
from protocol.store.workers import ComingWorker
from router.fast_path.fast_path import make_fast_path
from router.placement.place import PlacementRules
from router.prefix.prefix_index import PrefixIndex
from router.requests.dispatch import Dispatcher, DispatchLimits
from router.requests.events import Ended, GenerationRequest, Pooled, Read, Route, Scored
from router.requests.family import ForkFamily
from router.requests.trace import RequestTrace, TraceRing
from router.workers.registry import Registry

PROMPT = tuple(range(100, 140))
APART = PlacementRules(local_prefill="never")


class FakeCluster:
    """Made by `fake_cluster`; workers come with `add` and leave with `FakeWorker.die`."""

    def __init__(self, tasks: asyncio.TaskGroup, limits: DispatchLimits) -> None:
        self.fabric = Fabric()
        self.workers: dict[str, FakeWorker] = {}
        self.coming: list[ComingWorker] = []
        """Told with the next that `announce` tells."""
        self.metrics = RouterMetrics()
        self.fast_path = make_fast_path(self.metrics.between_tokens_s)
        self.registry = Registry(connect=_connect, fast_path=self.fast_path)
        self.index = PrefixIndex()
        self.registry.listeners.append(self._follow)
        self.traces = TraceRing()
        self.dispatcher = Dispatcher(
            registry=self.registry,
            index=self.index,
            metrics=self.metrics,
            traces=self.traces,
            limits=limits,
        )
        self.ever: list[FakeWorker] = []
        """All that there were."""
        self._tasks = tasks
        self._rosters: asyncio.Queue[Roster] = asyncio.Queue()
        self.background = [
            tasks.create_task(self.registry.run(self._news()), name="registry"),
            tasks.create_task(self.dispatcher.watch(), name="watchdog"),
        ]

    def add(self, worker: FakeWorker) -> FakeWorker:
        """Also in the place of a dead one of that name."""
        self.workers[worker.id] = worker
        self.ever.append(worker)
        self.background.append(self._tasks.create_task(worker.run(), name=f"fake {worker.id}"))
        self.announce()
        return worker

    def announce(self) -> None:
        here = tuple(w.registration for w in self.workers.values() if not w.dead.is_set())
        self._rosters.put_nowait(Roster(workers=here, coming=tuple(self.coming)))

    def restart_when_dead(self, worker: FakeWorker) -> None:
        """As a supervisor does, any number of times; the rest of the plan is carried over."""

        async def supervise(current: FakeWorker) -> None:
            while True:
                await current.dead.wait()
                told = current.registration
                current = self.add(
                    FakeWorker(
                        current.id,
                        current.role,
                        self.fabric,
                        plan=current.plan,
                        revision=told.revision,
                        compat=told.compat,
                    )
                )

        self.background.append(self._tasks.create_task(supervise(worker), name="supervisor"))

    def find_traces(self, request: RequestId) -> tuple[RequestTrace, ...]:
        return self.traces.find(request, now=time.monotonic())

    def close(self) -> None:
        """Also what was added a moment ago and never ran."""
        for task in self.background:
            task.cancel()
        for worker in self.ever:
            worker.close()

    async def until_ready(self) -> None:
        alive = [w.id for w in self.workers.values() if w.state == "ready" and not w.dead.is_set()]
        await soon(lambda: {w.id for w in self.registry.ready_workers()} >= set(alive))

    async def until_idle(self) -> None:
        """No worker that lives has anything left to do."""
        await soon(lambda: not [w.id for w in self.workers.values() if w.working])

    def _follow(self) -> None:
        self.index.follow_only_workers({w.id: w.epoch for w in self.registry.workers})

    async def _news(self) -> AsyncIterator[Roster]:
        while True:
            yield await self._rosters.get()


def _connect(registration: Registration) -> WorkerLink:
    return WorkerLink(address=registration.address, router=RouterId("router"))


@asynccontextmanager
async def fake_cluster(
    *,
    prefill: int = 0,
    decode: int = 0,
    plans: Mapping[str, Sequence[Act]] | None = None,
    limits: DispatchLimits | None = None,
    supervised: bool = False,
    revisions: Sequence[str] = ("revision",),
) -> AsyncIterator[FakeCluster]:
    """Ready workers `prefill-0`, ..., `decode-0`, ..., each by its number of one of the revisions,
    in turn; with `supervised` the dead come back."""
    roles: list[tuple[Role, int]] = [("prefill", prefill), ("decode", decode)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        cluster = FakeCluster(tasks, limits or DispatchLimits(rules=APART))
        try:
            for role, number in roles:
                for index in range(number):
                    name = f"{role}-{index}"
                    plan = (plans or {}).get(name, ())
                    revision = revisions[index % len(revisions)]
                    worker = cluster.add(
                        FakeWorker(name, role, cluster.fabric, plan=plan, revision=revision)
                    )
                    if supervised:
                        cluster.restart_when_dead(worker)
            await cluster.until_ready()
            yield cluster
        finally:
            cluster.close()


def request(
    *,
    max_tokens: int = 12,
    prompt: tuple[int, ...] = PROMPT,
    deadline_s: float = 20.0,
    name: str = "r",
    ignore_eos: bool = True,
    reading: PromptReading | None = None,
    family: ForkFamily | None = None,
    is_first: bool = True,
    version: ServedVersion | None = None,
) -> GenerationRequest:
    return GenerationRequest(
        id=RequestId(name),
        token_ids=prompt,
        sampling=Sampling(seed=1, max_tokens=max_tokens, ignore_eos=ignore_eos),
        salt="",
        reading=reading,
        deadline_s=deadline_s,
        family=family,
        is_first=is_first,
        version=version,
        already_ended=already_ended,
    )


Told = Route | Read | Token | Ended


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def placed(self, route: Route) -> None:
        self.told.append(route)

    def read(self, read: Read) -> None:
        self.told.append(read)

    def token(self, token: Token) -> None:
        self.told.append(token)

    @property
    def tokens(self) -> list[Token]:
        return [one for one in self.told if isinstance(one, Token)]


async def collect(
    cluster: FakeCluster, asked: GenerationRequest, heard: Heard | None = None
) -> list[Told]:
    """All that the request's listener was told, `heard` if one is given, and its ending."""
    heard = heard or Heard()
    ended = await cluster.dispatcher.generate(asked, heard)
    heard.told.append(ended)
    return heard.told


def tokens_of(told: Sequence[Told]) -> list[int]:
    """Checks the order: one route, what was read of the prompt, tokens from 0 without a gap, one
    `Ended`."""
    assert isinstance(told[0], Route)
    assert isinstance(told[-1], Ended)
    num_read = sum(isinstance(one, Scored | Pooled) for one in told)
    tokens = [one for one in told[1 + num_read : -1] if isinstance(one, Token)]
    assert len(tokens) == len(told) - 2 - num_read
    assert [token.index for token in tokens] == list(range(len(tokens)))
    return [token.token_id for token in tokens]


def scores_heard(told: Sequence[Told]) -> list[TokenScore]:
    """Checks that no prompt token is left out or told twice."""
    scored = [event for event in told if isinstance(event, Scored)]
    firsts = [event.first for event in scored]
    sizes = [len(event.scores) for event in scored]
    assert firsts == [1 + sum(sizes[:index]) for index in range(len(sizes))]
    return [score for event in scored for score in event.scores]
