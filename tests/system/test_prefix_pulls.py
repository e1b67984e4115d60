"""Prefixes that real workers pull from each other's caches: tokens are those of no pull at all."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from support.eventually import soon
from support.mini_router import Heard, MiniRouter
from support.worker_cluster import (
    BLOCK,
    GREEDY,
    SEEDED,
    WorkerCluster,
    drive,
    prompt,
    tiny_checkpoint,
)

from protocol.ids import Epoch, WorkerId
from protocol.messages import (
    Aborted,
    Finished,
    PrefillDone,
    PrefixPull,
    PrefixSource,
    Sampling,
    Started,
)

pytestmark = pytest.mark.system

FLAGS = ("--pull-timeout-s", "5")
WORKERS = ("prefill-0", "prefill-1", "decode-0")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerCluster]:
    with ExitStack() as stack:
        cluster = WorkerCluster(tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")), stack)
        for worker in WORKERS:
            cluster.start(worker, *FLAGS)
        yield cluster


async def source_of(router: MiniRouter, worker: str, *, num_tokens: int) -> PrefixSource:
    registrations = {
        r.worker: r for r in [s.registration for s in await router.store.list_workers()]
    }
    known = registrations[WorkerId(worker)]
    assert known.kv_address
    return PrefixSource(
        worker=known.worker, epoch=known.epoch, address=known.kv_address, num_tokens=num_tokens
    )


def started(heard: Heard) -> Started:
    (word,) = [word for word in heard.words if isinstance(word, Started)]
    return word


def pull_of(heard: Heard) -> PrefixPull:
    """As whoever computed the prompt told it."""
    word = heard.find(Started) or heard.ending
    assert isinstance(word, Started | Finished) and word.pull is not None, word
    return word.pull


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_prefill_worker_computes_only_what_a_peer_had_not(
    three: WorkerCluster, sampling: Sampling
) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        salt, shared = 10 + sampling.seed, 12 * BLOCK
        tokens = prompt(shared + 3 * BLOCK + 3, salt=salt)
        name = f"pull-{sampling.seed}"
        await router.disaggregated(f"{name}-0", tokens[: shared + 1], sampling)
        source = await source_of(router, "prefill-0", num_tokens=shared)
        first, second = await router.disaggregated(
            f"{name}-1", tokens, sampling, prefill="prefill-1", prefix_source=None, salt="apart"
        )
        pulling = await router.prefill(
            "prefill-1", f"{name}-2", tokens, sampling, prefix_source=source
        )
        await soon(lambda: bool(pulling.words), 30, "started")
        decode = await router.decode(
            "decode-0", f"{name}-2", tokens, sampling, ticket=started(pulling).ticket
        )
        await router.ended(pulling, decode)
        assert pull_of(pulling).outcome == "landed"
        assert pull_of(pulling).source == "prefill-0"
        assert pull_of(pulling).num_tokens == shared
        assert started(pulling).cached_tokens == 0
        assert isinstance(pulling.ending, PrefillDone)
        assert decode.tokens == second.tokens and len(decode.tokens) == 12
        assert pulling.tokens == first.tokens

        again = await router.prefill(
            "prefill-1", f"{name}-3", tokens, sampling, prefix_source=source
        )
        await soon(lambda: bool(again.words), 30, "started")
        assert started(again).pull is None, "its own cache had as much"
        assert started(again).cached_tokens >= shared
        await router.abort("prefill-1", f"{name}-3")
        await router.idle(*WORKERS)

    drive(three, test)


def test_a_decode_worker_alone_pulls_and_lends(three: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        tokens = prompt(9 * BLOCK + 5, salt=31)
        local = await router.decode("decode-0", "local", tokens, SEEDED, salt="apart")
        await router.disaggregated("first", tokens[: 5 * BLOCK + 1], SEEDED, prefill="prefill-1")
        source = await source_of(router, "prefill-1", num_tokens=5 * BLOCK)
        # decode-0 has it of the hand-over; prefill-0 pulls from there
        there = await source_of(router, "decode-0", num_tokens=5 * BLOCK)
        back = await router.prefill("prefill-0", "back", tokens, SEEDED, prefix_source=there)
        await soon(lambda: bool(back.words), 30, "started")
        assert pull_of(back).outcome == "landed" and pull_of(back).num_tokens == 5 * BLOCK
        other = prompt(6 * BLOCK, salt=32)
        await router.ended(await router.prefill("prefill-1", "other", other, SEEDED))
        source = await source_of(router, "prefill-1", num_tokens=6 * BLOCK)
        longer = [*other, *prompt(BLOCK + 1, salt=33)]
        alone = await router.decode("decode-0", "alone", longer, SEEDED, prefix_source=source)
        plain = await router.decode("decode-0", "plain", longer, SEEDED, salt="apart")
        await router.ended(local, alone, plain)
        assert pull_of(alone).outcome == "landed" and pull_of(alone).num_tokens == 6 * BLOCK
        assert isinstance(alone.ending, Finished) and alone.ending.cached_tokens == 0
        assert alone.tokens == plain.tokens and len(alone.tokens) == 12
        await router.abort("prefill-0", "back")
        await router.abort("prefill-1", "other")
        await router.idle(*WORKERS)

    drive(three, test)


def test_what_a_peer_does_not_have_is_computed(three: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        tokens = prompt(8 * BLOCK + 1, salt=41)
        source = await source_of(router, "prefill-0", num_tokens=8 * BLOCK)
        plain = await router.decode("decode-0", "plain", tokens, SEEDED, salt="apart")
        none = await router.decode("decode-0", "none", tokens, SEEDED, prefix_source=source)
        await router.ended(plain, none)
        assert none.tokens == plain.tokens
        assert (pull_of(none).outcome, pull_of(none).num_tokens) == ("declined", 0)

        gone = PrefixSource(
            worker=source.worker, epoch=source.epoch, address="tcp://127.0.0.1:9", num_tokens=64
        )
        lost = await router.decode("decode-0", "lost", tokens, SEEDED, salt="b", prefix_source=gone)
        await router.ended(lost)
        assert lost.tokens == plain.tokens
        assert pull_of(lost).outcome in ("lost", "late")
        await router.idle(*WORKERS)

    drive(three, test)


def test_a_tenants_prefix_is_not_anothers(three: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        tokens = prompt(8 * BLOCK + 1, salt=51)
        await router.ended(await router.prefill("prefill-0", "mine", tokens, SEEDED, salt="me"))
        source = await source_of(router, "prefill-0", num_tokens=8 * BLOCK)
        yours = await router.decode(
            "decode-0", "yours", tokens, SEEDED, salt="you", prefix_source=source
        )
        mine = await router.decode(
            "decode-0", "mine", tokens, SEEDED, salt="me", prefix_source=source
        )
        await router.ended(yours, mine)
        assert pull_of(yours).outcome == "declined"
        assert pull_of(mine).outcome == "landed"
        assert mine.tokens == yours.tokens
        await router.abort("prefill-0", "mine")
        await router.idle(*WORKERS)

    drive(three, test)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_source_that_hangs_costs_a_moment_and_an_abort_meanwhile_nothing(
    three: WorkerCluster,
) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        tokens = prompt(10 * BLOCK + 1, salt=61)
        await router.ended(await router.prefill("prefill-0", "kept", tokens, SEEDED))
        await router.abort("prefill-0", "kept")
        source = await source_of(router, "prefill-0", num_tokens=10 * BLOCK)
        plain = await router.decode("decode-0", "plain", tokens, SEEDED, salt="apart")
        await router.ended(plain)
        with stopped(three.start("prefill-0", *FLAGS).pid):
            late = await router.decode("decode-0", "late", tokens, SEEDED, prefix_source=source)
            gone = await router.decode("decode-0", "gone", tokens, SEEDED, prefix_source=source)
            await router.abort("decode-0", "gone")
            await router.ended(late, gone)
        assert late.tokens == plain.tokens
        assert pull_of(late).outcome == "late" and pull_of(late).num_tokens == 0
        assert isinstance(gone.ending, Aborted) and not gone.tokens
        await router.ready(*WORKERS)
        await router.idle(*WORKERS)

    drive(three, test)


@pytest.mark.long
def test_a_source_or_a_puller_that_is_killed_costs_nobody_a_token(three: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready(*WORKERS)
        tokens = prompt(20 * BLOCK + 1, salt=71)
        for worker in ("prefill-0", "prefill-1"):
            await router.ended(await router.prefill(worker, "kept", tokens, SEEDED))
            await router.abort(worker, "kept")
        plain = await router.decode("decode-0", "plain", tokens, SEEDED, salt="apart")
        await router.ended(plain)
        source = await source_of(router, "prefill-0", num_tokens=20 * BLOCK)
        pulling = await router.decode(
            "decode-0", "source dies", tokens, SEEDED, prefix_source=source
        )
        os.kill(three.start("prefill-0", *FLAGS).pid, signal.SIGKILL)
        await router.ended(pulling)
        assert pulling.tokens == plain.tokens
        await router.gone("prefill-0")
        three.start("prefill-0", *FLAGS)
        await router.ready(*WORKERS)

        source = await source_of(router, "prefill-1", num_tokens=20 * BLOCK)
        await router.prefill("prefill-0", "puller dies", tokens, SEEDED, prefix_source=source)
        os.kill(three.start("prefill-0", *FLAGS).pid, signal.SIGKILL)
        await router.gone("prefill-0")
        await router.idle("prefill-1", "decode-0")
        three.start("prefill-0", *FLAGS)
        await router.ready(*WORKERS)
        epoch = msgspec.structs.replace(source, epoch=Epoch(source.epoch + 1))
        other = await router.prefill(
            "prefill-0", "other epoch", tokens, SEEDED, prefix_source=epoch
        )
        await router.ended(other)
        assert other.tokens == plain.tokens[:1]
        assert pull_of(other).outcome == "lost"
        await router.abort("prefill-0", "other epoch")
        await router.idle(*WORKERS)

    drive(three, test)
