"""Nodes that run nothing: a pod that the scheduler puts onto one is ready there at once, and gone
when it is told to end."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx
from support.kube.api import Api, Object

GPU, PRODUCT = "nvidia.com/gpu", "nvidia.com/gpu.product"
WATCH_S = 2
END_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Of nodes."""

    name: str
    product: str = ""
    """Of its GPUs, as NVIDIA's operator labels it."""
    num_gpus: int = 0
    num_nodes: int = 1


@dataclass(slots=True, eq=False)
class Kubelets:
    """Those of all nodes, in a thread of their own."""

    api: Api
    not_placed: set[str] = field(default_factory=set)
    """Pods for which no node had room at some time, by their names."""
    starts_pods: bool = True
    """Otherwise what comes to a node stays pending, until somebody says so."""
    fault: Exception | None = None
    """Why they do nothing any more."""
    _ends: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            while not self._ends.is_set():
                with suppress(httpx.TransportError):  # a busy machine's: all is listed again
                    self._look()
        except Exception as error:
            self.fault = error

    def _look(self) -> None:
        listed = self.api.get("/api/v1/pods")
        for pod in listed["items"]:
            self._see(pod)
        since = listed["metadata"]["resourceVersion"]
        for event in self.api.watch("/api/v1/pods", since=since, for_s=WATCH_S):
            if event["type"] in ("ADDED", "MODIFIED"):
                self._see(event["object"])

    def stop(self) -> None:
        self._ends.set()

    def _see(self, pod: Object) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        try:
            if not pod["spec"].get("nodeName"):
                if _why_unscheduled(pod) == "Unschedulable":
                    self.not_placed.add(meta["name"])
            elif "deletionTimestamp" in meta:
                self.api.delete(path, gracePeriodSeconds=0)
            elif self.starts_pods and pod["status"].get("phase") == "Pending":
                self.api.merge(f"{path}/status", {"status": _running(pod)})
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise


def _why_unscheduled(pod: Object) -> str:
    of_it = pod["status"].get("conditions", ())
    return next((one.get("reason", "") for one in of_it if one["type"] == "PodScheduled"), "")


def _running(pod: Object) -> Object:
    told = {"ready": True, "restartCount": 0, "imageID": "", "started": True}
    containers = [
        {"name": one["name"], "image": one["image"], **told} for one in pod["spec"]["containers"]
    ]
    kinds = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}],
        "containerStatuses": containers,
        "conditions": [{"type": kind, "status": "True"} for kind in kinds],
    }


@contextmanager
def nodes(api: Api, kinds: Sequence[Kind]) -> Iterator[Kubelets]:
    """Nodes named KIND-0, KIND-1, ..., which live as long as the control plane."""
    for kind in kinds:
        for number in range(kind.num_nodes):
            _add_node(api, kind, f"{kind.name}-{number}")
    kubelets = Kubelets(api)
    thread = threading.Thread(target=kubelets.run, name="kubelets", daemon=True)
    thread.start()
    try:
        yield kubelets
    finally:
        kubelets.stop()
        thread.join(END_S)


def _add_node(api: Api, kind: Kind, name: str) -> None:
    labels = {"kubernetes.io/hostname": name, **({PRODUCT: kind.product} if kind.product else {})}
    room: Mapping[str, str] = {
        "cpu": "64",
        "memory": "512Gi",
        "pods": "110",
        **({GPU: str(kind.num_gpus)} if kind.num_gpus else {}),
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
    api.create("/api/v1/nodes", node)
    status = {
        "capacity": room,
        "allocatable": room,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
    }
    api.merge(f"/api/v1/nodes/{name}/status", {"status": status})
