"""A release of the chart in a cluster of pods, changed while clients ask."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.eventually import soon
from support.pods.chart import rendered
from support.pods.cluster import Pods, pods
from support.pods.image import Image, image_of, kernels_built_ahead
from support.pods.load import Load

NAME = "demo"
PROMPTS = (
    "How do I sharpen a knife?",
    "Tell me a story about a fox.",
    "What is 3 plus 4?",
    "Write a list of fruits.",
)
NUM_MORE = 12
"""Answers that must come after a change is through."""


@dataclass(slots=True, kw_only=True)
class Release:
    cluster: Pods
    values: dict[str, Any]
    images: dict[str, Image]
    """By tag."""

    @property
    def url(self) -> str:
        return f"http://{self.cluster.address_of(f'{NAME}-baton')}:8000"

    def upgrade(self, **values: Any) -> None:
        """As `helm upgrade --reuse-values --set ...`."""
        self.values = merged(self.values, values)
        self.cluster.apply(rendered(NAME, **self.values))

    def restart(self, component: str) -> None:
        """As `kubectl rollout restart`."""
        name = f"Deployment/{NAME}-baton-{component}"
        template = self.cluster.kept.objects[name]["spec"]["template"]
        notes = template["metadata"].setdefault("annotations", {})
        notes["kubectl.kubernetes.io/restartedAt"] = str(len(self.cluster.pods))

    async def some_more(self, load: Load, number: int = NUM_MORE) -> None:
        """Until so many more answers have come."""
        goal = len(load.told) + number
        await soon(lambda: len(load.told) >= goal or bool(load.failures), 120, "answers")

    def assert_nothing_failed(self, load: Load, allowed: Mapping[str, set[str]]) -> None:
        """No failed, cut or wrong answer; no pod that ended otherwise than it was asked to."""
        assert load.failures == [], load.failures[:3]
        for prompt, texts in load.texts().items():
            assert texts <= allowed[prompt], f"{prompt}: {texts - allowed[prompt]}"
        for pod in self.cluster.pods:
            assert pod.num_restarts == 0, f"{pod.name} was restarted\n{pod.output[-3000:]}"
            assert not pod.was_killed, f"{pod.name} outlived its grace\n{pod.output[-3000:]}"
            assert set(pod.exit_codes) <= {0}, f"{pod.name}: {pod.exit_codes}"


@asynccontextmanager
async def release(
    folder: Path,
    *,
    replicas: int = 1,
    lag_s: float = 0.5,
    nodes: tuple[str, ...] = ("node-0", "node-1"),
    claims: Mapping[str, Path] | None = None,
    **values: Any,
) -> AsyncIterator[Release]:
    """Installed and rolled out, `replicas` of each but Redis. `values` are the chart's."""
    built = replace(image_of(), kernels=kernels_built_ahead(folder / "kernels"))
    images = {"1": built}
    each = {"replicas": replicas}
    base = {
        "image": {"tag": "1"}, "router": {**each, "env": APART},
        "prefill": {**each, **_LIGHT}, "decode": {**each, **_LIGHT},
        "model": {"servedName": "tiny"},
    }  # fmt: skip
    async with pods(
        folder / "pods", _by_tag(images), lag_s=lag_s, nodes=nodes, claims=claims
    ) as cluster:
        made = Release(cluster=cluster, values=merged(base, values), images=images)
        made.upgrade()
        await cluster.rolled_out()
        yield made


APART = [{"name": "BATON_LOCAL_PREFILL", "value": "never"}]
_LIGHT = {"threads": 1, "kvBlocks": 256}


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges: maps by key, all else replaced."""
    found = deepcopy(dict(values))
    for key, value in more.items():
        old = found.get(key)
        found[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return found


def _by_tag(images: Mapping[str, Image]) -> Callable[[str], Image]:
    def image(name: str) -> Image:
        return images[name.rsplit(":", 1)[-1]]

    return image
