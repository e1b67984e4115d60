"""What a router process says and does at the edge of what its machine or its operator gives it."""

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.eventually import eventually, soon
from support.processes import ROOT, process
from support.raw_http import connected
from support.redis_server import RedisServer, free_port
from support.router_process import command, deployment, ended

from router.settings import RouterSettings

pytestmark = pytest.mark.system


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


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    code = (
        "from protocol.process.machine import raise_descriptor_limit as raised;"
        "from router.wire.listener import bound_connections as bound;"
        "print(*(bound(most, descriptors=raised()) for most in (1000, 50)), raised())"
    )
    limited = ("sh", "-c", 'ulimit -Sn 64; ulimit -Hn 400; exec "$@"', "sh")
    words = [*limited, sys.executable, "-c", code]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == ["200", "50", "400"]


@pytest.mark.parametrize("key", [",", " ", ",, ,"])
def test_a_key_without_a_key_in_it_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="holds no key"):
        RouterSettings(api_key=key)


def test_a_key_of_nothing_is_no_open_door() -> None:
    over = ended(command(redis="redis://127.0.0.1:1", port=0), BATON_API_KEY=" , ")
    assert (over.returncode, len(over.stderr.splitlines())) == (2, 1)
    assert over.stderr.startswith("router: api_key: ") and "holds no key" in over.stderr


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "0.0.0.0", "--api-key", "k"), False),
    ],
)
def test_an_open_host_without_a_key_warns(
    redis: RedisServer, flags: tuple[str, ...], warned: bool
) -> None:
    port = free_port()
    where = ("--redis", redis.url, "--port", str(port))
    with process("router", *where, *flags) as router:
        eventually(lambda: router.events("listening"), 30)
        eventually(lambda: router.events("Redis connected"), 30)  # the next it says
        assert bool(router.events("open to the network")) == warned
