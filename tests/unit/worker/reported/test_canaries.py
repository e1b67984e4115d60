"""Blocks from peers before a worker is ready and after, over fetches that end as they are told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from support.eventually import soon
from support.jumping_clock import JumpingLoop
from support.words import beat, registration

from protocol.errors import StoreError
from protocol.ids import WorkerId
from protocol.messages import PrefixSource, Role
from protocol.process.metrics import WorkerMetrics
from protocol.store.workers import WorkerRecord
from worker.reported.canaries import ROUND_S, PeerCanaries
from worker.reported.canary_end import CanaryEnd, CanaryOutcome, OnCanaryEnd


def record(worker: str, role: Role = "prefill", *, compat: str = "same") -> WorkerRecord:
    known = registration(worker, role=role)
    known = msgspec.structs.replace(known, kv_address="tcp://x:2", compat=compat)
    return WorkerRecord(registration=known, beat=beat())


class World:
    """Who is there, and what becomes of a block from them: it lands unless told otherwise."""

    can_fetch = True

    def __init__(self, *workers: WorkerRecord, again_s: float = 0.001) -> None:
        self.workers: Sequence[WorkerRecord] = workers
        self.outcomes: dict[str, CanaryOutcome] = {}
        self.asked: list[str] = []
        self.silent: set[str] = set()
        self.is_redis_away = False
        self.metrics = WorkerMetrics()
        self.metrics.health.note("ready")
        self.canaries = PeerCanaries(
            self, self, metrics=self.metrics, again_s=again_s, every_s=0.001
        )

    async def list_workers(self) -> Sequence[WorkerRecord]:
        if self.is_redis_away:
            raise StoreError("Redis is away")
        return self.workers

    def fetch_block(self, source: PrefixSource, *, within_s: float, on_end: OnCanaryEnd) -> None:
        self.asked.append(source.worker)
        if source.worker in self.silent:
            return
        outcome = self.outcomes.get(source.worker, "landed")
        on_end(CanaryEnd(outcome=outcome, why=f"{outcome} by {source.worker}"))

    @property
    def why(self) -> str | None:
        return self.metrics.health.not_ready()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """As a decode worker."""
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.canaries.run(registration()), name="canaries")
            yield
            task.cancel()


def test_a_worker_is_ready_once_a_block_has_come_from_a_peer_of_the_other_role() -> None:
    async def test() -> None:
        world = World(record("decode-1", "decode"), record("prefill-0"))
        assert world.why == "it has not looked for peers yet"
        async with world.running():
            await soon(lambda: world.why is None)
            assert set(world.asked) == {"prefill-0"}

    asyncio.run(test())


def test_a_worker_from_whose_peers_nothing_comes_is_not_ready_and_says_why() -> None:
    async def test() -> None:
        world = World(record("prefill-0"))
        world.outcomes["prefill-0"] = "failed"
        async with world.running():
            await soon(lambda: "no KV comes from prefill-0: failed by" in str(world.why))
            assert world.canaries.unreachable == (WorkerId("prefill-0"),)
            world.outcomes.clear()
            await soon(lambda: world.why is None)

    asyncio.run(test())


def test_one_peer_of_several_is_enough_and_the_broken_one_is_told() -> None:
    async def test() -> None:
        names = [f"prefill-{index}" for index in range(3)]
        world = World(*map(record, names))
        world.outcomes = {"prefill-0": "failed", "prefill-1": "failed"}
        async with world.running():
            await soon(lambda: world.why is None)
            await soon(lambda: set(world.canaries.unreachable) == {"prefill-0", "prefill-1"})
            gauge = "baton_worker_unreachable_peers"
            assert world.metrics.registry.get_sample_value(gauge) == 2.0

    asyncio.run(test())


def test_a_peer_that_breaks_later_takes_nobodys_readiness_away() -> None:
    async def test() -> None:
        world = World(record("prefill-0"))
        async with world.running():
            await soon(lambda: world.why is None)
            world.outcomes["prefill-0"] = "failed"
            await soon(lambda: world.canaries.unreachable == ("prefill-0",))
            assert world.why is None
            world.workers = ()
            await soon(lambda: world.canaries.unreachable == ())

    asyncio.run(test())


async def is_ready_unasked(world: World) -> None:
    async with world.running():
        await soon(lambda: world.why is None)
    assert world.asked == []


def test_alone_without_redis_or_among_others_models_a_worker_is_ready_at_once() -> None:
    async def test() -> None:
        await is_ready_unasked(World())
        await is_ready_unasked(World(record("prefill-0", compat="other")))
        away = World(record("prefill-0"))
        away.is_redis_away = True
        async with away.running():
            await soon(lambda: away.why is None)

    asyncio.run(test())


def test_a_peer_that_answers_and_has_no_block_to_spare_is_no_reason_to_wait() -> None:
    async def test() -> None:
        world = World(record("prefill-0"))
        world.outcomes["prefill-0"] = "declined"
        async with world.running():
            await soon(lambda: world.why is None)
            assert world.canaries.unreachable == ()

    asyncio.run(test())


def test_a_worker_without_a_block_to_spare_asks_again_and_is_not_ready_meanwhile() -> None:
    async def test() -> None:
        world = World(record("prefill-0"))
        world.outcomes["prefill-0"] = "skipped"
        async with world.running():
            await soon(lambda: len(world.asked) > 2)
            assert world.why is not None
            world.outcomes.clear()
            await soon(lambda: world.why is None)

    asyncio.run(test())


def first_word(world: World) -> tuple[str | None, float]:
    """What a worker says once it has asked its peers, and when, by a clock that jumps."""

    async def test() -> tuple[str | None, float]:
        async with world.running():
            while world.why == "it has not looked for peers yet":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return world.why, asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(test())


def test_three_peers_that_never_answer_are_told_within_the_round() -> None:
    names = [f"prefill-{index}" for index in range(3)]
    world = World(*map(record, names), again_s=1.0)
    world.silent = set(names)
    why, after_s = first_word(world)
    assert "no answer within 3 s" in str(why)
    assert after_s < ROUND_S + 0.1


def test_a_worker_that_has_no_block_to_spare_all_the_time_serves() -> None:
    world = World(record("prefill-0"), again_s=1.0)
    world.outcomes["prefill-0"] = "skipped"
    why, after_s = first_word(world)
    assert why is None
    assert ROUND_S - 0.1 < after_s < ROUND_S + 0.1
