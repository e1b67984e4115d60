"""Real worker processes on a tiny random checkpoint, driven over their real links."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.eventually import soon
from support.mini_router import MiniRouter, mini_router
from support.worker_cluster import (
    BLOCK,
    CONTEXT,
    GREEDY,
    LONG,
    SEEDED,
    WorkerCluster,
    drive,
    prompt,
    tiny_checkpoint,
)

from protocol.messages import Aborted, Failed, Finished, Landed, PrefillDone, Sampling, Started

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Iterator[WorkerCluster]:
    """One prefill and one decode worker, shared by tests that leave them as they were."""
    with ExitStack() as stack:
        cluster = WorkerCluster(checkpoint, stack)
        cluster.start("prefill-0")
        cluster.start("decode-0")
        yield cluster


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("length", [1, BLOCK, BLOCK + 1, 100, CONTEXT - 12])
def test_disaggregated_tokens_and_text_equal_colocated_ones(
    pair: WorkerCluster, length: int, sampling: Sampling
) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens, name = prompt(length, salt=length), f"{length}-{sampling.seed}"
        first, second = await router.disaggregated(f"dis-{name}", tokens, sampling)
        local = await router.decode("decode-0", f"loc-{name}", tokens, sampling, salt="other")
        await router.ended(local)

        assert isinstance(first.ending, PrefillDone)
        assert isinstance(second.ending, Finished) and second.ending.reason == "length"
        assert first.tokens == second.tokens[:1] and first.text == second.emits[0].text
        assert second.tokens == local.tokens and len(local.tokens) == 12
        assert second.text == local.text
        assert [emit.index for emit in second.emits] == list(range(12))
        landed = second.find(Landed)
        assert isinstance(landed, Landed) and landed.transport == "shm"
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)


def test_decode_fetches_only_what_its_prefix_cache_lacks(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(5 * BLOCK, salt=3)
        await router.disaggregated("p1", tokens, GREEDY)
        longer = tokens + prompt(2 * BLOCK, salt=4)
        first, second = await router.disaggregated("p2", longer, GREEDY)
        landed, done = second.find(Landed), first.ending
        assert isinstance(landed, Landed) and isinstance(done, PrefillDone)
        assert (landed.blocks_reused, landed.blocks_moved) == (5, 2)
        assert done.cached_tokens == 5 * BLOCK
        assert isinstance(second.ending, Finished)
        assert second.ending.cached_tokens == 5 * BLOCK

        again, cached = await router.disaggregated("p3", longer, GREEDY)
        landed = cached.find(Landed)
        assert isinstance(landed, Landed) and landed.blocks_moved == 0
        assert cached.tokens == second.tokens and again.tokens == first.tokens

    drive(pair, test)


def test_a_continued_request_goes_on_with_the_tokens_it_would_have_had(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(50, salt=5)
        _, whole = await router.disaggregated("whole", tokens, SEEDED)
        half = tuple(whole.tokens[:5])
        first, rest = await router.disaggregated(
            "rest", tokens, SEEDED, generated=half, attempt=3, salt="elsewhere"
        )
        assert first.tokens == whole.tokens[5:6]
        assert rest.tokens == whole.tokens[5:]
        assert [emit.index for emit in rest.emits] == list(range(5, 12))
        assert "".join(e.text for e in whole.emits[:5]) + rest.text == whole.text

    drive(pair, test)


def test_a_stop_string_ends_the_text_without_a_round_trip(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(20, salt=6)
        _, free = await router.disaggregated("free", tokens, GREEDY)
        stop = free.emits[6].text or free.text[-3:-1]
        stopping = Sampling(seed=1, max_tokens=12, temperature=0.0, ignore_eos=True, stop=(stop,))
        _, second = await router.disaggregated("stop", tokens, stopping)
        assert isinstance(second.ending, Finished) and second.ending.reason == "stop"
        assert second.text == free.text[: free.text.index(stop)]

    drive(pair, test)


def test_a_request_of_one_token_ends_in_the_prefill_worker(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        one = Sampling(seed=1, max_tokens=1, temperature=0.0, ignore_eos=True)
        first = await router.prefill("prefill-0", "one", prompt(20), one)
        await soon(lambda: bool(first.words), 30, "started")
        started = first.words[0]
        assert isinstance(started, Started)
        second = await router.decode("decode-0", "one", prompt(20), one, ticket=started.ticket)
        await router.ended(first)
        assert isinstance(first.ending, Finished) and first.ending.reason == "length"
        assert len(first.tokens) == 1
        await router.abort("decode-0", "one")
        await router.ended(second)
        assert [type(word) for word in second.words] == [Aborted]
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_what_could_harm_others_is_refused_and_harms_nobody(pair: WorkerCluster, name: str) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        ask = router.prefill if name == "prefill-0" else router.decode
        bad = {
            "beyond": await ask(name, "beyond", [1, 10**9], GREEDY),
            "negative": await ask(name, "negative", [-1], GREEDY),
            "empty": await ask(name, "empty", [], GREEDY),
            "long": await ask(name, "long", prompt(CONTEXT), GREEDY),
            "late": await ask(name, "late", prompt(30), GREEDY, deadline_s=-1.0),
        }
        await router.ended(*bad.values())
        codes = {
            key: heard.ending.code for key, heard in bad.items() if isinstance(heard.ending, Failed)
        }
        assert codes == {
            "beyond": "invalid",
            "negative": "invalid",
            "empty": "invalid",
            "long": "too_long",
            "late": "deadline",
        }
        await router.idle(name)
        _, second = await router.disaggregated(f"after-{name}", prompt(9), GREEDY)
        assert isinstance(second.ending, Finished)

    drive(pair, test)


def test_an_abort_at_any_point_gives_every_block_back(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(100, salt=8)

        many = [
            await router.prefill("prefill-0", f"m{i}", prompt(200, salt=i), LONG)
            for i in range(10, 30)
        ]
        for i in range(10, 30):
            await router.abort("prefill-0", f"m{i}")
        await router.ended(*many)
        assert isinstance(many[-1].ending, Aborted)

        first = await router.prefill("prefill-0", "a2", tokens, LONG)
        await router.ended(first)
        assert isinstance(first.ending, PrefillDone)
        await router.abort("prefill-0", "a2")  # nobody will fetch it
        await router.idle("prefill-0", within_s=1.5)

        first = await router.prefill("prefill-0", "a3", prompt(200, salt=9), LONG)
        await soon(lambda: bool(first.words))
        started = first.words[0]
        assert isinstance(started, Started)
        second = await router.decode(
            "decode-0", "a3", prompt(200, salt=9), LONG, ticket=started.ticket
        )
        await router.abort("decode-0", "a3")
        await router.ended(second)  # else it may hear first that its source was aborted
        assert isinstance(second.ending, Aborted)
        await router.abort("prefill-0", "a3")
        await router.ended(first)

        third = await router.decode("decode-0", "a4", tokens, LONG)
        await soon(lambda: len(third.emits) > 3)
        await router.abort("decode-0", "a4")
        await router.ended(third)
        assert isinstance(third.ending, Aborted)
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)


def test_a_router_that_disappears_takes_its_requests_with_it(pair: WorkerCluster) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        async with mini_router(pair.redis.address) as other:
            await other.ready("prefill-0", "decode-0")
            heard = await other.decode("decode-0", "o1", prompt(30), LONG)
            done = await other.prefill("prefill-0", "o2", prompt(30), LONG)
            await soon(lambda: bool(heard.emits) and done.ending is not None)
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)
