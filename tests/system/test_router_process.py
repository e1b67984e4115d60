"""`python -m router` as a process, before fake workers that live in the test."""

import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.eventually import soon
from support.fake_worker import Act, expected
from support.redis_server import RedisServer
from support.router_process import PROMPT, command, deployment, ended

from protocol.messages import Sampling

pytestmark = pytest.mark.system
FILES = resource.RLIMIT_NOFILE
APART = ("--local-prefill", "never")


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(test)


def test_a_completion_crosses_the_process_and_survives_a_killed_decode_worker(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model, plan=(Act("die", 4),), flags=APART) as made:
            made.workers["decode-1"].plan = made.workers["decode-0"].plan  # whoever is the first
            response = await made.complete(max_tokens=10)
            assert response.status_code == 200, response.text
            tokens = expected(PROMPT, Sampling(seed=1, max_tokens=10, ignore_eos=True))
            text = response.json()["choices"][0]["text"]
            assert text.split() == [str(token) for token in tokens]
            assert response.headers["x-baton-route"].startswith("prefill-0>decode-")

            request_id = response.headers["x-request-id"]
            (trace,) = (await made.client.get(f"/trace/{request_id}")).json()["traces"]
            dead, other = [a["decode"] for a in trace["attempts"]]
            assert {dead, other} == {"decode-0", "decode-1"}
            view = (await made.client.get("/cluster")).json()
            ready = {w["id"] for w in view["workers"] if w["state"] == "ready"}
            assert ready == {"prefill-0", other}

    run(test())


def test_without_a_c_compiler_it_says_so_before_it_is_ready_and_serves(
    redis: RedisServer, model: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        log = tmp_path / "log"
        nobody = {"CC": "no-compiler", "XDG_CACHE_HOME": str(tmp_path)}
        async with deployment(redis, model, flags=APART, log=log, env=nobody) as made:
            told = {json.loads(line)["event"] for line in log.read_text().splitlines()}
            assert {"no C prefix index", "no C kernel of placement"} <= told
            response = await made.complete(max_tokens=5)
            assert response.status_code == 200, response.text
            assert response.headers["x-baton-route"].startswith("prefill-0>decode-")

    run(test())


def test_redis_killed_fails_no_request(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made:

            async def index_is(state: str) -> bool:
                view = (await made.client.get("/cluster")).json()
                return bool(view["index"] == state)

            await soon(lambda: index_is("exact"))
            redis.kill()
            response = await made.complete(max_tokens=5)
            assert response.status_code == 200, response.text
            await soon(lambda: index_is("degraded"))
            redis.start()
            await soon(lambda: index_is("exact"))
            assert (await made.client.get("/ready")).status_code == 200

    run(test())


def test_a_router_out_of_descriptors_serves_on_and_says_who_is_not_reached(
    redis: RedisServer, model: Path
) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made, AsyncExitStack() as silent:
            pid, where = made.process.pid, made.client.base_url
            used, before = len(os.listdir(f"/proc/{pid}/fd")), resource.prlimit(pid, FILES)
            resource.prlimit(pid, FILES, (used + 1, before[1]))
            for _ in range(100):  # what listens takes them, the router has no descriptor for them
                one = silent.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex((where.host, where.port))
            late = made.add("decode-2", "decode")

            async def is_said() -> bool:
                return "Too many open files" in await made.why("decode-2")

            await soon(is_said, 20)
            assert (await made.complete(max_tokens=5)).status_code == 200
            resource.prlimit(pid, FILES, before)
            await soon(late.joined.is_set, 20)

    run(test())


def test_sigterm_ends_running_requests_well_and_exits_0(redis: RedisServer, model: Path) -> None:
    async def test() -> None:
        async with deployment(redis, model) as made:
            running = [asyncio.ensure_future(made.complete(max_tokens=200)) for _ in range(4)]
            await soon(lambda: any(w.seen for w in made.workers.values()))
            made.process.send_signal(signal.SIGTERM)
            for response in await asyncio.gather(*running):
                assert response.status_code == 200, response.text
            await soon(lambda: made.process.poll() == 0, 20)

    run(test())


def test_sigterm_leaves_time_to_those_who_have_not_heard_and_tells_whom_it_leaves(
    redis: RedisServer, model: Path, tmp_path: Path
) -> None:
    """Once more hurries: as if the time of streams were over."""

    async def test() -> None:
        log, flags = tmp_path / "log", ("--linger-s", "600")
        hang = (Act("hang", 2),)
        async with deployment(redis, model, plan=hang, flags=flags, log=log) as made:
            made.workers["decode-1"].die()
            running = asyncio.ensure_future(made.complete(max_tokens=9))
            await soon(lambda: bool(made.workers["decode-0"].seen))
            made.process.send_signal(signal.SIGTERM)
            await soon(lambda: b'"draining"' in log.read_bytes())
            assert not await made.ready()
            answer = await made.complete(max_tokens=3)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            made.process.send_signal(signal.SIGTERM)
            left = await running
            assert (left.status_code, left.json()["error"]["code"]) == (503, "restarting")
            await soon(lambda: made.process.poll() == 0, 20)
            assert b"Traceback" not in log.read_bytes()

    run(test())


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--mode", "x"), 2, "router: unknown setting: --mode x"),
        (("--model", "/nowhere"), 2, "router: unknown setting: --model /nowhere"),
        (("--tool-format", "tongs"), 2, "router: tool_format: 'tongs' is none of auto, none, "),
        (("--redis", "localhost"), 2, "router: redis: 'localhost': must start with redis://"),
    ],
)
def test_what_only_the_operator_can_mend_is_one_line_and_an_exit_code(
    flags: tuple[str, ...], code: int, line: str
) -> None:
    over = ended([*command(redis="redis://127.0.0.1:1", port=0), *flags])
    assert over.returncode == code
    assert over.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in over.stderr


def test_a_taken_port_is_one_line_and_exit_code_2(redis: RedisServer) -> None:
    over = ended(command(redis=redis.url, port=redis.port))
    assert over.returncode == 2
    assert over.stderr == (
        f"router: port: cannot listen on 127.0.0.1:{redis.port}: Address already in use\n"
    )
