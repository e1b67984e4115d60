"""A release of the chart in a cluster of pods, changed while clients ask."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.eventually import soon
from support.pods.alone import Oracle, strangers
from support.pods.chart import rendered
from support.pods.cluster import Pods, pods
from support.pods.image import BASE_PATH, Image, built_again, image_of, kernels_built_ahead
from support.pods.load import Load

from protocol.process.listening import bracketed

NAME = "demo"
PROMPTS = (
    "How do I sharpen a knife?",
    "Tell me a story about a fox.",
    "What is 3 plus 4?",
    "Write a list of fruits.",
)


@dataclass(slots=True, kw_only=True)
class Release:
    cluster: Pods
    values: dict[str, Any]
    images: dict[str, Image]
    """By target and tag, as `router:1`."""

    @property
    def url(self) -> str:
        return f"http://{bracketed(self.cluster.address_of(f'{NAME}-baton'))}:8000"

    def upgrade(self, **values: Any) -> None:
        """As `helm upgrade --reuse-values --set ...`."""
        self.values = merged(self.values, values)
        self.cluster.apply(rendered(NAME, **self.values))

    def build(self, tag: str, folder: Path, files: Mapping[str, str]) -> None:
        """Other images of Baton, with these `files` in their sources."""
        built = built_again(self.images["router:1"], folder, more=files)
        for target in ("router", "worker-cpu"):
            image = self.images[f"{target}:1"]
            self.images[f"{target}:{tag}"] = replace(image, source=built.source)

    def restart(self, component: str) -> None:
        """As `kubectl rollout restart`."""
        deployment = self.cluster.kept.objects[f"Deployment/{self.name(component)}"]
        template = deployment["spec"]["template"]
        notes = template["metadata"].setdefault("annotations", {})
        notes["kubectl.kubernetes.io/restartedAt"] = str(len(self.cluster.pods))

    def name(self, component: str) -> str:
        """Of its Deployment."""
        return f"{NAME}-baton-{component}"

    async def covered(self, load: Load, since: int) -> None:
        """Until every prompt was answered, counting from that answer on."""

        def is_covered() -> bool:
            return load.texts(since).keys() >= set(load.prompts) or bool(load.failures)

        await soon(is_covered, 120, "answers to all prompts")
        assert not load.failures, self._story(load)

    def assert_nothing_failed(self, load: Load, allowed: Oracle) -> None:
        """No failed, cut or wrong answer; no pod that ended otherwise than it was asked to."""
        assert load.failures == [], self._story(load)
        wrong = strangers(load.told, allowed)
        assert not wrong, f"{wrong[:3]}, but {allowed}"
        for pod in self.cluster.pods:
            assert pod.num_restarts == 0, f"{pod.name} was restarted\n{pod.output[-3000:]}"
            assert not pod.was_killed, f"{pod.name} outlived its grace\n{pod.output[-3000:]}"
            assert set(pod.exit_codes) <= {0}, f"{pod.name}: {pod.exit_codes}"

    def _story(self, load: Load) -> str:
        """What failed, and what was going on."""
        refused = self.cluster.refusals(f"{NAME}-baton")
        routers = [pod.output[-4000:] for pod in self.cluster.pods if "-router-" in pod.name]
        return "\n".join([*map(str, load.failures[:3]), *refused[:20], *routers])


@asynccontextmanager
async def release(
    folder: Path,
    *,
    replicas: int = 1,
    lag_s: float = 0.5,
    nodes: tuple[str, ...] = ("node-0", "node-1"),
    builds: Mapping[str, Mapping[str, str]] | None = None,
    first: Callable[[Release], Awaitable[None]] | None = None,
    family: int = 4,
    **values: Any,
) -> AsyncIterator[Release]:
    """Installed and rolled out, `replicas` of each but Redis. `values` are the chart's; `builds`
    the files of more images by their tag; `first` what is done as soon as it is installed."""
    kernels = kernels_built_ahead(folder / "kernels")
    built = built_again(image_of("router"), folder / "image")
    images = {
        "router:1": replace(built, kernels=kernels),
        "worker-cpu:1": replace(image_of("worker-cpu", source=built.source), kernels=kernels),
        "redis:1": replace(image_of("redis"), more_env={"PATH": f"/opt/venv/bin:{BASE_PATH}"}),
    }
    each = {"replicas": replicas}
    light = {**each, "settings": {"threads": 1, "kvBlocks": 256}}
    base = {
        "image": {"repository": "baton", "tag": "1"},
        "router": {**each, "settings": {"localPrefill": "never"}},
        "prefill": light, "decode": light,
    }  # fmt: skip
    async with pods(
        folder / "pods", _named(images), lag_s=lag_s, nodes=nodes, family=family
    ) as cluster:
        made = Release(cluster=cluster, values=merged(base, values), images=images)
        for tag, files in (builds or {}).items():
            made.build(tag, folder / f"image-{tag}", files)
        made.upgrade()
        if first is not None:
            await first(made)
        await cluster.rolled_out()
        await soon(lambda: cluster.is_served(f"{NAME}-baton"), 60, "endpoints")
        yield made


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges: maps by key, all else replaced."""
    found = deepcopy(dict(values))
    for key, value in more.items():
        old = found.get(key)
        found[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return found


def _named(images: Mapping[str, Image]) -> Callable[[str], Image]:
    def image(name: str) -> Image:
        return images[name.removeprefix("baton-")]

    return image
