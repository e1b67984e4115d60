"""The chart rendered by Helm's own code, and what its containers are told."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import helm_python as helm
import yaml
from support.source_tree import ROOT

from protocol.process.settings import CommandSettings, load

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CHART = ROOT / "charts" / "baton"
Object = dict[str, Any]
S = TypeVar("S", bound=CommandSettings)


def ci_values() -> dict[str, Object]:
    """The values files that the chart comes with, by their names."""
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    return {
        file.name.removesuffix("-values.yaml"): yaml.safe_load(file.read_text()) for file in files
    }


def rendered(
    values: Mapping[str, Any], *, chart: Path = CHART, name: str = "demo"
) -> dict[str, str]:
    """Manifests by the template's path, with an image's repository unless `values` has one."""
    image = {"repository": "baton", **values.get("image", {})}
    return dict(texts_of(json.dumps({**values, "image": image}), str(chart), name))


@cache
def texts_of(values: str, chart: str, name: str) -> dict[str, str]:
    """40 ms, and many tests look at the same."""
    return helm.Chart.load(chart).render(json.loads(values), name=name, namespace="ns")


def objects(values: Mapping[str, Any], *, chart: Path = CHART, name: str = "demo") -> list[Object]:
    texts = rendered(values, chart=chart, name=name)
    manifests = (text for path, text in texts.items() if path.endswith(".yaml"))
    return [thing for text in manifests for thing in yaml.load_all(text, LOADER) if thing]


def render(**values: Any) -> dict[str, Object]:
    """Objects by `Kind/name`."""
    return by_name(objects(values))


def by_name(things: Sequence[Object]) -> dict[str, Object]:
    found: dict[str, Object] = {}
    for thing in things:
        name = f"{thing['kind']}/{thing['metadata']['name']}"
        assert name not in found, f"{name} comes twice"
        found[name] = thing
    return found


def deployment(component: str, **values: Any) -> Object:
    return render(**values)[f"Deployment/demo-baton-{component}"]


def pod(thing: Object) -> Object:
    """Of a Deployment, DaemonSet or Job."""
    return dict(thing["spec"]["template"]["spec"])


def container(thing: Object) -> Object:
    """The first: ours."""
    return dict(pod(thing)["containers"][0])


def pods(things: Mapping[str, Object]) -> dict[str, Object]:
    """What makes pods, by name."""
    return {name: one for name, one in things.items() if "template" in one.get("spec", {})}


@contextmanager
def environment_of(told: Object) -> Iterator[None]:
    """A container's own, as far as the manifest has it: of secrets and fields, their names."""
    env = {one["name"]: one.get("value", "from-elsewhere") for one in told.get("env", [])}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    with patch.dict(os.environ, {**kept, **env}, clear=True):
        yield


def settings_of(thing: Object, settings: type[S]) -> S:
    """What the process itself reads of its container's arguments and environment."""
    told = container(thing)
    args = [re.sub(r"\$\(POD_(NAME|IP)\)", _pod, arg) for arg in told["args"]]
    with environment_of(told):
        return load(settings, args[1:])


def _pod(match: "re.Match[str]") -> str:
    return "pod-1" if match[1] == "NAME" else "fd00::7"
