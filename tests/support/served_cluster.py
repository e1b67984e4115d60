"""A registry before fake workers, and the models that it learns from them: a router but HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.fabric import Fabric
from support.fake_worker import FakeWorker

from protocol.channel.link import WorkerLink
from protocol.ids import RouterId
from protocol.membership import Roster
from protocol.messages import Registration
from protocol.process.metrics import RouterMetrics
from protocol.store.workers import ComingWorker
from router.models.kept_texts import KeptTexts
from router.models.served import ServedModels
from router.models.text_reading import ReadingRules
from router.models.texts import Texts
from router.workers.registry import Registry


class ServedCluster:
    """Made by `served_cluster`; workers come with `add`, and leave with `FakeWorker.die`."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path, patience_s: float) -> None:
        self.fabric, self.metrics = Fabric(), RouterMetrics()
        self.registry = Registry(connect=_connect)
        texts = Texts(
            self.registry, rules=ReadingRules(), kept=KeptTexts(folder), metrics=self.metrics
        )
        self.models = ServedModels(self.registry, texts, patience_s=patience_s)
        self._here: list[FakeWorker] = []
        self._coming: tuple[ComingWorker, ...] = ()
        self._tasks = tasks
        self._rosters: asyncio.Queue[Roster] = asyncio.Queue()
        self.background = [
            tasks.create_task(self.registry.run(self._news()), name="registry"),
            tasks.create_task(self.models.run(), name="texts"),
        ]

    def add(self, worker: FakeWorker) -> FakeWorker:
        self._here.append(worker)
        self.background.append(self._tasks.create_task(worker.run(), name=f"fake {worker.id}"))
        self._announce()
        return worker

    def is_coming(self, *coming: ComingWorker) -> None:
        """These load, and no others."""
        self._coming = coming
        self._announce()

    def serves(self, name: str | None) -> bool:
        return any(one.name == name and one.revisions for one in self.models.listed())

    def count(self, outcome: str) -> float:
        name = "baton_router_text_fetches_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0

    def close(self) -> None:
        for task in self.background:
            task.cancel()
        for worker in self._here:
            worker.close()

    def _announce(self) -> None:
        alive = (one.registration for one in self._here if not one.dead.is_set())
        self._rosters.put_nowait(Roster(workers=tuple(alive), coming=self._coming))

    async def _news(self) -> AsyncIterator[Roster]:
        while True:
            yield await self._rosters.get()


def _connect(registration: Registration) -> WorkerLink:
    return WorkerLink(
        address=registration.address, router=RouterId("router"), version=registration.wire
    )


@asynccontextmanager
async def served_cluster(folder: Path, *, patience_s: float = 15.0) -> AsyncIterator[ServedCluster]:
    """`folder`: where it keeps texts."""
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        cluster = ServedCluster(tasks, folder, patience_s)
        try:
            yield cluster
        finally:
            cluster.close()
