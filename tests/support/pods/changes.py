"""What is changed of a release while clients ask; each raises AssertionError when one noticed."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from support.eventually import soon
from support.pods.alone import Alone, Model, answers_alone, oracle_of, strangers
from support.pods.image import ROOT
from support.pods.load import Load, Told, ask, client_of, steady_load
from support.pods.pod import Pod
from support.pods.release import PROMPTS, Release, release

TINY = Model(folder=ROOT / "models" / "tiny", served="tiny")
AWAY_S = 30.0
LONG_TOKENS = 1200
NEXT_WIRE = """
import protocol.codec as codec

codec.SPOKEN_VERSIONS = (codec.WIRE_VERSION + 1, codec.WIRE_VERSION)
codec.WIRE_VERSION += 1
"""
"""Of a version of Baton after this one: its messages are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    up: Release
    load: Load
    alone: tuple[Alone, ...]
    """What its models answer alone, in the order in which they are served."""

    async def answered(self) -> int:
        """Once every prompt was, by requests that began from now on (`Load.begun`)."""
        since = len(self.load.told)
        await self.up.covered(self.load, since)
        return since

    def assert_nothing_failed(self) -> None:
        self.up.assert_nothing_failed(self.load, oracle_of(self.alone))


async def the_image(folder: Path, *, replicas: int, lag_s: float, **values: Any) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, **values) as scene:
        scene.up.build("2", folder / "image-2", {"BUILD": "2"})
        await _upgraded(scene, image={"tag": "2"})


async def the_image_without_a_spare(folder: Path, *, replicas: int, lag_s: float) -> None:
    """As pools on GPUs: a worker goes before another comes. Of one, requests wait meanwhile."""
    values = {
        "worker": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
        "router": {"settings": {"localPrefill": "auto", "patienceS": 100}},
    }
    await the_image(folder, replicas=replicas, lag_s=lag_s, **values)


async def the_image_of_nodes(folder: Path, *, replicas: int, lag_s: float) -> None:
    """Prefill and decode workers in one pod, under a supervisor: blocks move in shared memory."""
    node = {"replicas": replicas, "settings": {"threads": 1, "kvBlocks": 256}}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, layout="node", node=node) as scene:
        scene.up.build("2", folder / "image-2", {"BUILD": "2"})
        await _upgraded(scene, component="node", image={"tag": "2"})
        told = [pod.output.count('"transport":"shm"') for pod in scene.up.cluster.living("router")]
        assert all(told), "no prompt's KV came through shared memory"


async def wire_version_up(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as scene:
        scene.up.build("2", folder / "image-2", {"sitecustomize.py": NEXT_WIRE})
        await _upgraded(scene, image={"tag": "2"})


async def wire_version_down(folder: Path, *, replicas: int, lag_s: float) -> None:
    newer, tag = {"2": {"sitecustomize.py": NEXT_WIRE}}, {"tag": "2"}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, builds=newer, image=tag) as scene:
        await _upgraded(scene, image={"tag": "1"})


async def dtype(folder: Path, *, replicas: int, lag_s: float) -> None:
    both = tuple(replace(TINY, dtype=one) for one in ("bfloat16", "float32"))
    model = {"dtype": "bfloat16"}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, models=both, model=model) as scene:
        await _upgraded(scene, model={"dtype": "float32"})


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
    both = (TINY, Model(folder=folder / "models" / "other", served="other"))
    other = {
        "name": "other", "role": "decode", "replicas": replicas,
        "settings": {"threads": 1, "kvBlocks": 256},
        "model": {"hostPath": str(folder / "models"), "path": "other", "servedName": "other"},
    }  # fmt: skip
    values: dict[str, Any] = {
        "router": {"aliases": {"prod": {"tiny": 100, "other": 0}}},
        "pools": [other],
    }
    async with _loaded(
        folder, replicas=replicas, lag_s=lag_s, asked="prod", models=both, **values
    ) as scene:
        await scene.answered()
        pods, load = len(scene.up.cluster.pods), scene.load
        _assert_answered_by(load.told, scene.alone[0])
        scene.up.upgrade(router={"aliases": {"prod": {"tiny": 0, "other": 100}}})
        moved = '"event":"aliases loaded"'
        for router in scene.up.cluster.living("router"):
            await soon(partial(_has_twice, router, moved), 60, f"{router.name} read the alias")
        since = await scene.answered()
        assert len(scene.up.cluster.pods) == pods, "a pod was restarted"
        scene.assert_nothing_failed()
        _assert_answered_by(load.begun(since), scene.alone[1])


async def routers_restarted_in_mid_answer(folder: Path, *, replicas: int, lag_s: float) -> None:
    """Workers too, whose drain is shorter than an answer: it goes on elsewhere, to the letter."""
    drain = {"settings": {"drainS": 0.1}}
    async with _loaded(
        folder, replicas=replicas, lag_s=lag_s, worker=drain,
        num_clients=1 + 2 * replicas, max_tokens=LONG_TOKENS, prompts=PROMPTS[:2],
    ) as scene:  # fmt: skip
        await scene.answered()
        old = scene.up.cluster.living("decode")
        for component in ("router", "decode"):
            scene.up.restart(component)
        await scene.up.cluster.rolled_out()
        await scene.answered()
        scene.assert_nothing_failed()
        assert any('"finished":false' in pod.output for pod in old), "none had to be handed over"


async def a_node_drained(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as scene:
        await scene.answered()
        cluster = scene.up.cluster
        await cluster.drain_node("node-0")
        await cluster.rolled_out()
        assert {pod.node for pod in cluster.living()} == {"node-1"}
        await scene.answered()
        scene.assert_nothing_failed()


async def redis_late(folder: Path, *, replicas: int, lag_s: float) -> None:
    """Everything else is there half a minute before it."""

    async def later(up: Release) -> None:
        up.cluster.scale(up.name("redis"), 0)
        await soon(lambda: len(up.cluster.living("decode")) == replicas, 30)
        await asyncio.sleep(AWAY_S)
        up.cluster.scale(up.name("redis"), 1)

    async with _loaded(folder, replicas=replicas, lag_s=lag_s, first=later) as scene:
        await scene.answered()
        scene.assert_nothing_failed()


async def redis_away(folder: Path, *, replicas: int, lag_s: float) -> None:
    async with _loaded(folder, replicas=replicas, lag_s=lag_s) as scene:
        await scene.answered()
        up = scene.up
        up.cluster.scale(up.name("redis"), 0)
        await soon(lambda: not up.cluster.living("redis"), 30)
        await asyncio.sleep(AWAY_S)
        up.cluster.scale(up.name("redis"), 1)
        await up.cluster.rolled_out()
        await scene.answered()
        scene.assert_nothing_failed()


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


def _has_twice(pod: Pod, told: str) -> bool:
    return pod.output.count(told) > 1


@asynccontextmanager
async def _loaded(
    folder: Path,
    *,
    models: Sequence[Model] = (TINY,),
    asked: str = "tiny",
    prompts: Sequence[str] = PROMPTS,
    num_clients: int = 3,
    max_tokens: int = 24,
    **more: Any,
) -> AsyncIterator[Scene]:
    """`models`: those that are served, one after the other."""
    alone = [await answers_alone(model, prompts, max_tokens=max_tokens) for model in models]
    async with (
        release(folder, **more) as up,
        steady_load(up.url, asked, prompts, num_clients=num_clients, max_tokens=max_tokens) as load,
    ):
        yield Scene(up=up, load=load, alone=tuple(alone))


async def _upgraded(scene: Scene, *, component: str = "decode", **values: Any) -> None:
    await scene.answered()
    _assert_answered_by(scene.load.told, scene.alone[0])
    old = {pod.name for pod in scene.up.cluster.living(component)}
    scene.up.upgrade(**values)
    await scene.up.cluster.rolled_out()
    assert not old & {pod.name for pod in scene.up.cluster.living(component)}, "nothing was changed"
    since = await scene.answered()
    scene.assert_nothing_failed()
    _assert_answered_by(scene.load.begun(since), scene.alone[-1])


def _assert_answered_by(told: Sequence[Told], only: Alone) -> None:
    wrong = strangers(told, oracle_of([only]))
    assert not wrong, f"{wrong[:3]}, but {only}"


async def _another_model(folder: Path, *, replicas: int, lag_s: float) -> None:
    models = folder / "models"
    shutil.copytree(TINY.folder, models / "first")
    both = [Model(folder=models / name, served="tiny") for name in ("first", "other")]
    model = {"hostPath": str(models), "path": "first", "servedName": "tiny"}
    async with _loaded(folder, replicas=replicas, lag_s=lag_s, models=both, model=model) as scene:
        texts = [set(one.texts.values()) for one in scene.alone]
        assert texts[0].isdisjoint(texts[1]), "nobody could tell them apart"
        await _upgraded(scene, model={"path": "other"})


def _make_other(folder: Path) -> None:
    from support.pods.models import other_tokenizer  # as above

    other_tokenizer(folder / "models" / "other")
