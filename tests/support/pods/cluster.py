"""A cluster of pods on this machine: `apply` manifests, and they become what they say.

What it plays: Deployments, Services, ConfigMaps, Secrets and claims; a kubelet's probes, grace and
restarts; a Service's late endpoints. What it does not: a scheduler, quotas, network policies,
cgroups.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from support.eventually import soon
from support.pods.deployment import decide, is_rolled_out, template_of
from support.pods.image import Image
from support.pods.network import Network, network
from support.pods.pod import Pod
from support.pods.service import Endpoint, Service
from support.pods.volumes import Kept, Object

TICK_S = 0.1
ROLLED_OUT_S = 300.0
CRASH_LOOP = 5
"""Starts of a container that nothing lets hope for more."""


@dataclass(slots=True, kw_only=True)
class Pods:
    """Everything applied, and what came of it."""

    net: Network
    folder: Path
    image: Callable[[str], Image]
    """By the name in a manifest."""
    lag_s: float
    """Seconds that a Service's list of endpoints is late."""
    nodes: Sequence[str]
    kept: Kept
    tasks: asyncio.TaskGroup
    pods: list[Pod] = field(default_factory=list)
    """Also those that are gone."""
    _services: dict[str, tuple[str, Service]] = field(default_factory=dict)
    _proxies: list[asyncio.Task[None]] = field(default_factory=list)
    _cordoned: set[str] = field(default_factory=set)

    def apply(self, objects: Sequence[Object]) -> None:
        """What is not in it any more stays, as with `kubectl apply`."""
        for thing in objects:
            self.kept.objects[f"{thing['kind']}/{thing['metadata']['name']}"] = thing
        for thing in objects:
            if thing["kind"] == "Service":
                self._serve(thing)
        for pod in self.living():
            pod.refresh()

    def delete(self, kind: str, name: str) -> None:
        self.kept.objects.pop(f"{kind}/{name}")
        for pod in self.of(name) if kind == "Deployment" else ():
            pod.delete()

    def scale(self, name: str, replicas: int) -> None:
        self.kept.objects[f"Deployment/{name}"]["spec"]["replicas"] = replicas

    async def rolled_out(self, within_s: float = ROLLED_OUT_S) -> None:
        """As `kubectl rollout status` of all Deployments, and until the old pods are gone."""

        def is_done() -> bool:
            for pod in self.living():
                assert pod.num_restarts < CRASH_LOOP, (
                    f"{pod.name} ends again and again: {pod.output}"
                )
            return all(is_rolled_out(one, self.of(name)) for name, one in self.deployments())

        await soon(is_done, within_s, f"rollout of {[name for name, _ in self.deployments()]}")

    def deployments(self) -> list[tuple[str, Object]]:
        found = self.kept.objects.values()
        return [(one["metadata"]["name"], one) for one in found if one["kind"] == "Deployment"]

    def of(self, deployment: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.owner == deployment]

    def living(self, component: str = "") -> list[Pod]:
        """Not gone; of one component or of all."""
        key = "app.kubernetes.io/component"
        return [
            pod for pod in self.pods
            if not pod.is_gone and component in ("", pod.labels.get(key))
        ]  # fmt: skip

    def address_of(self, service: str) -> str:
        """Its cluster address."""
        return self._services[service][0]

    def is_served(self, service: str) -> bool:
        """Whether its late list of endpoints has come."""
        return bool(self._services[service][1].known)

    def refusals(self, service: str) -> list[str]:
        """Connections that found no pod."""
        return self._services[service][1].refused

    async def drain_node(self, node: str) -> None:
        """As `kubectl drain`, with budgets of one unavailable: nothing new comes there, and what
        is there goes, of each Deployment one when all others are ready."""
        self._cordoned.add(node)
        while left := [pod for pod in self.living() if pod.node == node and not pod.is_deleted]:
            for pod in left:
                wanted = self.kept.objects[f"Deployment/{pod.owner}"]["spec"].get("replicas", 1)
                ready = [one for one in self.of(pod.owner) if one.is_ready and not one.is_deleted]
                if len(ready) >= wanted:
                    pod.delete()
            await asyncio.sleep(TICK_S)

    async def control(self) -> None:
        """The controllers, until cancelled."""
        while True:
            for name, deployment in self.deployments():
                decision = decide(deployment, self.of(name))
                for pod in decision.to_delete:
                    assert isinstance(pod, Pod)
                    pod.delete()
                for _ in range(decision.num_new):
                    self._start(deployment)
            await asyncio.sleep(TICK_S)

    def _start(self, deployment: Object) -> None:
        name, template = deployment["metadata"]["name"], deployment["spec"]["template"]
        of = template_of(deployment)
        pod_name = f"{name}-{of}-{secrets.token_hex(3)}"
        folder = self.folder / pod_name
        folder.mkdir(parents=True)
        pod = Pod(
            name=pod_name,
            namespace=deployment["metadata"].get("namespace", "default"),
            node=self._node_for(name),
            owner=name,
            template=of,
            labels=template["metadata"]["labels"],
            spec=template["spec"],
            image=self.image,
            kept=self.kept,
            hosts=self._hosts,
            folder=folder,
        )
        self.pods.append(pod)
        self.tasks.create_task(pod.run(self.net), name=pod_name)

    def _node_for(self, deployment: str) -> str:
        """The one with fewest of its own."""
        taken = [pod.node for pod in self.of(deployment) if not pod.is_gone and not pod.is_deleted]
        free = [node for node in self.nodes if node not in self._cordoned]
        return min(free, key=taken.count)

    def _hosts(self) -> str:
        return "".join(
            f"{address} {name} {name}.default.svc {name}.default.svc.cluster.local\n"
            for name, (address, _) in self._services.items()
        )

    def _serve(self, thing: Object) -> None:
        name, spec = thing["metadata"]["name"], thing["spec"]
        if name in self._services or spec.get("clusterIP") == "None":
            return
        address = self.net.add_service()
        for port in spec["ports"]:
            endpoints = partial(self._endpoints, spec["selector"], port)
            service = Service(endpoints, lag_s=self.lag_s)
            self._services.setdefault(name, (address, service))
            serving = service.serve(address, port["port"])
            self._proxies.append(self.tasks.create_task(serving, name=f"service {name}"))

    def _endpoints(self, selector: Mapping[str, str], port: Object) -> list[Endpoint]:
        chosen = [
            pod for pod in self.pods
            if pod.is_ready and not pod.is_deleted and selector.items() <= pod.labels.items()
        ]  # fmt: skip
        return [(pod.address, _target(pod, port)) for pod in chosen]

    async def close(self) -> None:
        """Kills whatever still runs."""
        for proxy in self._proxies:
            proxy.cancel()
        for pod in self.living():
            pod.delete()
            pod.spec = {**pod.spec, "terminationGracePeriodSeconds": 0}
            if pod.running is not None:
                await pod.running.kill()
        await soon(lambda: not self.living(), 60, "pods gone")


@asynccontextmanager
async def pods(
    folder: Path,
    image: Callable[[str], Image],
    *,
    lag_s: float = 0.5,
    nodes: Sequence[str] = ("node-0",),
    claims: Mapping[str, Path] | None = None,
    family: int = 4,
) -> AsyncIterator[Pods]:
    """An empty cluster. Raises NoNamespaces where there can be none."""
    with network(family) as net:
        async with asyncio.TaskGroup() as tasks:
            made = Pods(
                net=net, folder=folder, image=image, lag_s=lag_s, nodes=nodes, tasks=tasks,
                kept=Kept(objects={}, claims=claims or {}),
            )  # fmt: skip
            controlling = tasks.create_task(made.control(), name="controllers")
            try:
                yield made
            finally:
                controlling.cancel()
                await made.close()


def _target(pod: Pod, port: Object) -> int:
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    ports = [one for container in pod.spec["containers"] for one in container.get("ports", ())]
    (found,) = (one["containerPort"] for one in ports if one.get("name") == target)
    number: int = found
    return number
