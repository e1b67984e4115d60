"""What a router process says and does at the edge of what its machine or its operator gives it."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.eventually import eventually, soon
from support.processes import process
from support.raw_http import connected
from support.redis_server import RedisServer, free_port, redis_server
from support.router_process import ROOT, command, deployment

pytestmark = pytest.mark.system


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "fake")


def test_silent_connections_take_no_descriptor_that_a_worker_needs(
    redis: RedisServer, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with deployment(redis, model, descriptors=256) as made, AsyncExitStack() as stack:
            for _ in range(300):
                await stack.enter_async_context(connected(made.url))
            worker = made.add("decode-2", "decode")
            await soon(worker.joined.is_set, 20, "the worker is known")
            for _ in range(5):
                assert (await made.complete(max_tokens=3)).status_code == 200
            assert len(os.listdir(f"/proc/{made.process.pid}/fd")) < 256

    asyncio.run(test())
    said = capfd.readouterr().err
    assert '"max_connections":128' in said
    assert "connections full; the idlest is closed" in said and "ulimit -n" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("key", [" , ", ",", " "])
def test_a_key_of_nothing_is_no_open_door(model: Path, key: str) -> None:
    ended = subprocess.run(
        command(model, redis="redis://127.0.0.1:1", port=0),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BATON_API_KEY": key},
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert ended.stderr.startswith("router: api_key: ") and "holds no key" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "0.0.0.0", "--api-key", "k"), False),
        (("--host", "localhost"), False),
    ],
)
def test_an_open_host_without_a_key_warns(
    redis: RedisServer, model: Path, flags: tuple[str, ...], warned: bool
) -> None:
    port = free_port()
    where = ("--model", str(model), "--redis", redis.url, "--port", str(port))
    with process("router", *where, *flags) as router:
        eventually(lambda: router.events("listening"), 30)
        eventually(lambda: router.events("Redis connected"), 30)  # the next it says
        assert bool(router.events("open to the network")) == warned
