"""What is changed of a release while clients ask; each raises AssertionError when one noticed."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.eventually import soon
from support.pods.image import ROOT
from support.pods.load import Load, ask, client_of, steady_load
from support.pods.release import PROMPTS, Release, release

AWAY_S = 30.0
LONG_TOKENS = 1200
NEXT_WIRE = """
import protocol.codec as codec

codec.SPOKEN_VERSIONS = (codec.WIRE_VERSION + 1, codec.WIRE_VERSION)
codec.WIRE_VERSION += 1
"""
"""Of a version of Baton after this one: its messages are the same."""


async def the_image(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as (up, load):
        up.build("2", folder / "image-2", {"BUILD": "2"})
        await _upgraded(up, load, image={"tag": "2"})


async def wire_version_up(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as (up, load):
        up.build("2", folder / "image-2", {"sitecustomize.py": NEXT_WIRE})
        await _upgraded(up, load, image={"tag": "2"})


async def wire_version_down(folder: Path, *, replicas: int, lag_s: float) -> None:
    newer = {"2": {"sitecustomize.py": NEXT_WIRE}}
    tag = {"tag": "2"}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, builds=newer, image=tag) as (
        up,
        load,
    ):
        await _upgraded(up, load, image={"tag": "1"})


async def dtype(folder: Path, *, replicas: int, lag_s: float) -> None:
    model = {"dtype": "bfloat16"}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, model=model) as (up, load):
        await _upgraded(up, load, model={"dtype": "float32"})


async def weights(folder: Path, *, replicas: int, lag_s: float) -> None:
    """With the tokenizer that they had."""
    from support.pods.models import other_weights  # torch, which most changes need not

    other_weights(folder / "models" / "other")
    await _another_model(folder, replicas=replicas, lag_s=lag_s)


async def another_tokenizer_under_one_name(folder: Path, *, replicas: int, lag_s: float) -> None:
    _make_other(folder)
    await _another_model(folder, replicas=replicas, lag_s=lag_s)


async def an_alias_moved(folder: Path, *, replicas: int, lag_s: float) -> None:
    """From one model to another, in one step."""
    _make_other(folder)
    other = {
        "name": "other", "role": "decode", "replicas": replicas,
        "settings": {"threads": 1, "kvBlocks": 256},
        "model": {"hostPath": str(folder / "models"), "path": "other", "servedName": "other"},
    }  # fmt: skip
    values: dict[str, Any] = {
        "router": {"aliases": {"prod": {"tiny": 100, "other": 0}}},
        "pools": [other],
    }
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, asked="prod", **values) as (
        up,
        load,
    ):
        before = await _before(up, load)
        pods = len(up.cluster.pods)
        up.upgrade(router={"aliases": {"prod": {"tiny": 0, "other": 100}}})
        await soon(lambda: load.told[-1].served.startswith("other@"), 60, "the alias moved")
        after = await _after(up, load)
        assert len(up.cluster.pods) == pods, "a pod was restarted"
        up.assert_nothing_failed(load, _either(before, after))
        assert all(before[prompt] != after[prompt] for prompt in PROMPTS)


async def routers_restarted_in_mid_answer(folder: Path, *, replicas: int, lag_s: float) -> None:
    """Workers too, whose drain is shorter than an answer: it goes on elsewhere, to the letter."""
    drain = {"settings": {"drainS": 0.1}}
    async with _loaded(
        folder, replicas=replicas, lag_s=lag_s, worker=drain,
        num_clients=1 + 2 * replicas, max_tokens=LONG_TOKENS, prompts=PROMPTS[:2],
    ) as (up, load):  # fmt: skip
        before = await _before(up, load)
        old = up.cluster.living("decode")
        for component in ("router", "decode"):
            up.restart(component)
        await up.cluster.rolled_out()
        after = await _after(up, load)
        up.assert_nothing_failed(load, _either(before, after))
        assert before == after
        assert any('"finished":false' in pod.output for pod in old), "none had to be handed over"


async def a_node_drained(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as (up, load):
        before = await _before(up, load)
        await up.cluster.drain_node("node-0")
        await up.cluster.rolled_out()
        assert {pod.node for pod in up.cluster.living()} == {"node-1"}
        after = await _after(up, load)
        up.assert_nothing_failed(load, _either(before, after))


async def redis_late(folder: Path, *, replicas: int, lag_s: float) -> None:
    """Everything else is there half a minute before it."""

    async def later(up: Release) -> None:
        up.cluster.scale(up.name("redis"), 0)
        await soon(lambda: len(up.cluster.living("decode")) == replicas, 30)
        await asyncio.sleep(AWAY_S)
        up.cluster.scale(up.name("redis"), 1)

    async with _loaded(folder, replicas=replicas, lag_s=lag_s, first=later) as (up, load):
        before = await _before(up, load)
        up.assert_nothing_failed(load, before)


async def redis_away(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as (up, load):
        before = await _before(up, load)
        up.cluster.scale(up.name("redis"), 0)
        await soon(lambda: not up.cluster.living("redis"), 30)
        await asyncio.sleep(AWAY_S)
        up.cluster.scale(up.name("redis"), 1)
        await up.cluster.rolled_out()
        after = await _after(up, load)
        up.assert_nothing_failed(load, _either(before, after))


async def installed_and_uninstalled(folder: Path) -> None:
    """A chat is prefilled in one pod and decoded in another; then all end as they are asked to."""
    async with release(folder) as up:
        async with client_of(up.url) as client:
            told = await ask(client, "tiny", PROMPTS[0], max_tokens=24)
        assert not told.failure, told
        assert told.route.startswith(f"{up.name('prefill')}-"), told.route
        assert f">{up.name('decode')}-" in told.route, told.route
        for name, _ in up.cluster.deployments():
            up.cluster.delete("Deployment", name)
        await soon(lambda: not up.cluster.living(), 120, "all gone")
        for pod in up.cluster.pods:
            assert (pod.exit_codes, pod.was_killed) == ([0], False), pod.output[-3000:]


@asynccontextmanager
async def _loaded(
    folder: Path,
    *,
    asked: str = "tiny",
    prompts: Sequence[str] = PROMPTS,
    num_clients: int = 3,
    max_tokens: int = 24,
    **more: Any,
) -> AsyncIterator[tuple[Release, Load]]:
    async with (
        release(folder, **more) as up,
        steady_load(up.url, asked, prompts, num_clients=num_clients, max_tokens=max_tokens) as load,
    ):
        yield up, load


async def _upgraded(up: Release, load: Load, **values: Any) -> None:
    before = await _before(up, load)
    old = {pod.name for pod in up.cluster.living("decode")}
    up.upgrade(**values)
    await up.cluster.rolled_out()
    assert not old & {pod.name for pod in up.cluster.living("decode")}, "nothing was changed"
    after = await _after(up, load)
    up.assert_nothing_failed(load, _either(before, after))


async def _another_model(folder: Path, *, replicas: int, lag_s: float) -> None:
    model = {"hostPath": str(folder / "models"), "path": "first", "servedName": "tiny"}
    shutil.copytree(ROOT / "models" / "tiny", folder / "models" / "first")
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, model=model) as (up, load):
        await _upgraded(up, load, model={"path": "other"})


def _make_other(folder: Path) -> None:
    from support.pods.models import other_tokenizer  # as above

    other_tokenizer(folder / "models" / "other")


async def _before(up: Release, load: Load) -> dict[str, set[str]]:
    """What every prompt is answered."""
    return await _after(up, load)


async def _after(up: Release, load: Load) -> dict[str, set[str]]:
    """Of requests that begin from now on."""
    since = len(load.told) + load.num_clients  # those that are under way may be of before
    await up.covered(load, since)
    return load.texts(since)


def _either(*found: dict[str, set[str]]) -> dict[str, set[str]]:
    return {prompt: set().union(*(one[prompt] for one in found)) for prompt in found[0]}
