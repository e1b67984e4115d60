"""Keys with terms in real router processes: reloaded, and their limits kept together."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.eventually import soon
from support.redis_server import RedisServer, free_port, redis_server
from support.router_process import PROMPT, command, deployment, ended, started

pytestmark = pytest.mark.system


def write_keys(path: Path, *entries: dict[str, Any]) -> None:
    """As Kubernetes does: all at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": entries}))
    os.replace(new, path)


async def complete(client: httpx.AsyncClient, key: str) -> httpx.Response:
    asked = {"model": "fake", "prompt": PROMPT, "max_tokens": 2, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    return await client.post("/v1/completions", json=asked, headers=headers)


async def opens(client: httpx.AsyncClient, key: str) -> bool:
    return (await complete(client, key)).status_code == 200


@asynccontextmanager
async def two_routers(
    redis: RedisServer, model: Path, keys: Path
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of each, before the same workers."""
    flags, port = ("--keys-file", str(keys)), free_port()
    url = f"http://127.0.0.1:{port}"
    async with deployment(redis, model, flags=flags) as made:
        other = started(command(redis=redis.url, port=port, flags=flags))
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                await soon(lambda: _is_ready(client), 60, "the other router is ready")
                yield made.client, client
        finally:
            other.kill()
            other.wait()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


def test_keys_change_without_a_restart_and_a_broken_file_changes_nothing(
    redis: RedisServer, model: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    write_keys(keys, {"key": "old", "tenant": "a"})

    async def test() -> None:
        async with deployment(redis, model, flags=("--keys-file", str(keys))) as made:
            assert await opens(made.client, "old") and not await opens(made.client, "new")
            write_keys(keys, {"key": "new", "tenant": "a"})
            await soon(lambda: opens(made.client, "new"), 10, "the new key opens")
            assert not await opens(made.client, "old")
            keys.write_text("{")
            refused = 'baton_router_key_reloads_total{outcome="refused"} 1.0'

            async def is_refused() -> bool:
                return refused in (await made.client.get("/metrics")).text

            await soon(is_refused, 10, "the file is refused")
            assert await opens(made.client, "new")

    asyncio.run(test())


@pytest.mark.long
def test_two_routers_keep_one_limit_and_one_that_redis_lost_keeps_its_part(
    model: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    write_keys(
        keys,
        {"key": "k", "tenant": "a", "requests_per_minute": 20},
        {"key": "later", "tenant": "a", "requests_per_minute": 20},
    )

    async def test(redis: RedisServer) -> None:
        async with two_routers(redis, model, keys) as clients:
            asked = [complete(clients[i % 2], "k") for i in range(60)]
            statuses = Counter(one.status_code for one in await asyncio.gather(*asked))
            assert statuses == {200: 20, 429: 40}
            redis.kill()
            asked = [complete(clients[i % 2], "later") for i in range(60)]
            answers = await asyncio.gather(*asked)
            assert Counter(one.status_code for one in answers) == {200: 20, 429: 40}
            assert all("retry-after" in one.headers for one in answers if one.status_code == 429)

    with redis_server() as redis:
        asyncio.run(test(redis))


def test_a_router_does_not_start_with_keys_that_are_wrong(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    write_keys(keys, {"key": "secret", "tenant": "a", "weight": -1})
    flags = ("--keys-file", str(keys))
    over = ended(command(redis="redis://127.0.0.1:1", port=0, flags=flags))
    assert over.returncode == 2
    assert "keys_file" in over.stderr and "$.keys[0].weight" in over.stderr
    assert "secret" not in over.stderr
