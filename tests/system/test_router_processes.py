"""`python -m router --processes 2`: one port, one supervisor, and whatever one process is asked is
answered for both."""

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.eventually import soon
from support.fake_worker import Act, expected
from support.redis_server import RedisServer
from support.router_process import PROMPT, Deployment, command, deployment, ended

from protocol.messages import Sampling

pytestmark = pytest.mark.system
FLAGS = ("--processes", "2", "--local-prefill", "never")
NUM_TOKENS = 6
ASKED = {
    "model": "fake", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 1,
}  # fmt: skip


def run(test: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test

    asyncio.run(bounded())


def hanging(made: Deployment) -> None:
    """Streams stop after two tokens, until they are resumed."""
    for name in ("decode-0", "decode-1"):
        made.workers[name].plan.extend([Act("hang", 2)] * 64)


async def alone(made: Deployment, path: str, **more: Any) -> httpx.Response:
    """Over a connection of its own, which any of the processes may accept."""
    async with httpx.AsyncClient(base_url=made.url, timeout=60) as client:
        method = "POST" if more else "GET"
        return await client.request(method, path, **more)


async def processes(made: Deployment) -> list[dict[str, Any]]:
    try:
        view = (await alone(made, "/cluster")).json()
    except httpx.TransportError:
        return []
    found: list[dict[str, Any]] = view["processes"]
    return found


async def both_serve(made: Deployment) -> bool:
    return [one["process"] for one in await processes(made)] == [0, 1]


async def in_flight(made: Deployment) -> dict[int, int]:
    return {one["process"]: one["num_in_flight"] for one in await processes(made)}


async def streams_on_both(made: Deployment) -> list[asyncio.Task[httpx.Response]]:
    """At least two on each process, all of which hang."""
    asked: list[asyncio.Task[httpx.Response]] = []

    async def one_more() -> bool:
        numbers = await in_flight(made)
        if sum(numbers.values()) < len(asked):
            return False
        if min(numbers.values()) >= 2:
            return True
        asking = alone(made, "/v1/completions", json=ASKED)
        asked.append(asyncio.create_task(asking, name=f"stream {len(asked)}"))
        return False

    await soon(one_more, 60, "streams on both processes")
    return asked


def text() -> str:
    tokens = expected(PROMPT, Sampling(seed=1, max_tokens=NUM_TOKENS, ignore_eos=True))
    return " ".join(map(str, tokens))


def test_a_killed_process_loses_its_own_streams_alone_and_is_started_again(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model, flags=FLAGS) as made:
            await soon(lambda: both_serve(made), 60, "both processes serve")
            hanging(made)
            asked = await streams_on_both(made)
            killed, other = await processes(made)
            os.kill(killed["pid"], signal.SIGKILL)
            for worker in made.workers.values():
                worker.resumed.set()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            lost = [one for one in answers if isinstance(one, httpx.TransportError)]
            whole = [one for one in answers if isinstance(one, httpx.Response)]
            assert (len(lost), len(whole)) == (killed["num_in_flight"], other["num_in_flight"])
            assert {one.json()["choices"][0]["text"].strip() for one in whole} == {text()}

            await soon(lambda: both_serve(made), 60, "the killed one is started again")
            again, same = await processes(made)
            assert again["pid"] != killed["pid"]
            assert again["router"] != killed["router"]
            assert same["pid"] == other["pid"]
            assert made.process.poll() is None

    run(test())


@pytest.mark.long
def test_whichever_process_is_asked_answers_for_both(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model, flags=FLAGS) as made:
            await soon(lambda: both_serve(made), 60, "both processes serve")
            hanging(made)
            asked = await streams_on_both(made)
            load = (await alone(made, "/load")).json()
            assert load == {"server_load": len(asked)}
            for worker in made.workers.values():
                worker.resumed.set()
            answers = await asyncio.gather(*asked)
            requests = {answer.headers["x-request-id"] for answer in answers}
            assert len(requests) == len(asked)
            for request in requests:
                for _ in range(3):
                    found = await alone(made, f"/trace/{request}")
                    assert found.json()["traces"][0]["output_tokens"] == NUM_TOKENS
            assert (await alone(made, "/trace/nobody")).status_code == 404

            exposition = (await alone(made, "/metrics")).text
            families = {one.name: one for one in text_string_to_metric_families(exposition)}
            tokens = {
                sample.labels["process"]: sample.value
                for sample in families["baton_output_tokens"].samples
                if sample.name.endswith("_total")
            }
            assert set(tokens) == {"0", "1"}
            assert sum(tokens.values()) == len(asked) * NUM_TOKENS
            workers = families["baton_workers"].samples
            assert sum(sample.value for sample in workers) == 3
            assert not any("process" in sample.labels for sample in workers)

    run(test())


@pytest.mark.long
def test_sigterm_drains_each_process_and_exits_0(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model, flags=FLAGS) as made:
            await soon(lambda: both_serve(made), 60, "both processes serve")
            hanging(made)
            asked = await streams_on_both(made)
            pids = [one["pid"] for one in await processes(made)]
            made.process.send_signal(signal.SIGTERM)
            for worker in made.workers.values():
                worker.resumed.set()
            for answer in await asyncio.gather(*asked):
                assert answer.json()["choices"][0]["text"].strip() == text()
            await soon(lambda: made.process.poll() == 0, 20)
            assert not any(map(psutil.pid_exists, pids))

    run(test())


@pytest.mark.long
def test_a_supervisor_that_is_killed_leaves_no_process_behind(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model, flags=FLAGS) as made:
            await soon(lambda: both_serve(made), 60, "both processes serve")
            pids = [one["pid"] for one in await processes(made)]
            made.process.kill()
            await soon(lambda: not any(map(psutil.pid_exists, pids)), 20)

    run(test())


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--tool-format", "tongs"), 2),
        (("--redis", "localhost"), 2),
    ],
)
def test_what_keeps_one_process_from_starting_ends_all(flags: tuple[str, ...], code: int) -> None:
    began = time.monotonic()
    words = command(redis="redis://127.0.0.1:1", port=0, flags=("--processes", "2"))
    over = ended([*words, *flags])
    assert over.returncode == code, over.stderr
    assert time.monotonic() - began < 60


def test_a_taken_port_is_one_line_and_exit_code_2(redis: RedisServer) -> None:
    words = command(redis=redis.url, port=redis.port, flags=("--processes", "2"))
    over = ended(words)
    assert over.returncode == 2
    assert over.stderr == (
        f"router: port: cannot listen on 127.0.0.1:{redis.port}: Address already in use\n"
    )


@pytest.mark.long
def test_a_port_that_another_router_shares_is_taken(redis: RedisServer, model: Path) -> None:
    """Or half of its clients would come to us."""

    async def test() -> None:
        async with deployment(redis, model, flags=FLAGS) as made:
            await soon(lambda: both_serve(made), 60, "both processes serve")
            port = httpx.URL(made.url).port
            assert port is not None
            words = command(redis=redis.url, port=port, flags=("--processes", "2"))
            over = await asyncio.to_thread(ended, words)
            assert over.returncode == 2, over.stderr

    run(test())
