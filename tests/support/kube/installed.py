"""A release of the chart that Helm installs, in a namespace of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import helm_python as helm
from support.chart import CHART
from support.eventually import eventually
from support.kube.api import Api, Object
from support.kube.control_plane import ControlPlane
from support.pods.release import merged

NAME = "demo"
"""Of the release, unless it is told otherwise."""
WITHIN_S = 60.0
COMPONENT = "app.kubernetes.io/component"


@dataclass(slots=True)
class Installed:
    api: Api
    namespace: str
    config: helm.Config
    name: str = NAME
    values: dict[str, Any] = field(default_factory=lambda: {"image": {"repository": "baton"}})
    """In the operator's file."""

    def install(self, **values: Any) -> None:
        self.values = merged(self.values, values)
        self.config.install(str(CHART), self.name, self.values)

    def upgrade(self, *, chart: Path = CHART, **values: Any) -> None:
        """`values` are edited in the file, and all of it is given again."""
        self.values = merged(self.values, values)
        self.config.upgrade(str(chart), self.name, self.values)

    def path(self, component: str) -> str:
        """Of its Deployment."""
        folder = f"/apis/apps/v1/namespaces/{self.namespace}/deployments"
        return f"{folder}/{fullname(self.name)}-{component}"

    def deployment(self, component: str) -> Object:
        return self.api.get(self.path(component))

    def num_replicas(self, component: str) -> int:
        return int(self.deployment(component)["spec"]["replicas"])

    def pods(self, component: str | None = None) -> list[Object]:
        """Those that were not told to end."""
        only = {} if component is None else {"labelSelector": f"{COMPONENT}={component}"}
        found = self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", **only)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def uids(self, component: str) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods(component)}

    def wait_rolled_out(self, *components: str) -> None:
        for component in components:
            eventually(partial(self._is_rolled_out, component), WITHIN_S, component)

    def _is_rolled_out(self, component: str) -> bool:
        found = self.deployment(component)
        status, wanted = found["status"], found["spec"]["replicas"]
        return bool(
            status.get("observedGeneration") == found["metadata"]["generation"]
            and (status.get("updatedReplicas", 0), status.get("replicas", 0)) == (wanted, wanted)
            and status.get("availableReplicas", 0) == wanted
        )


def fullname(release: str) -> str:
    """Before the names of its objects."""
    return release if "baton" in release else f"{release}-baton"


@contextmanager
def namespace(plane: ControlPlane, name: str) -> Iterator[Installed]:
    with plane.api() as api:
        api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        config = helm.Config(kubeconfig_path=str(plane.kubeconfig), namespace=name)
        try:
            yield Installed(api, name, config)
        finally:
            for one in config.list():
                config.uninstall(one["name"])
            config.close()
            deployments = f"/apis/apps/v1/namespaces/{name}/deployments"
            for one in api.items(deployments):
                api.delete(f"{deployments}/{one['metadata']['name']}")
            eventually(lambda: not api.items(f"/api/v1/namespaces/{name}/pods"), WITHIN_S, "gone")
