"""The chart's Deployments as `podman kube play` runs them: a pod each, on a network of its own.

podman has no Services, no fields of a pod in its environment and, without systemd, no probes; the
ports of a pod would be the host's, of which there is one each, and an emptyDir is a volume of its
name. So a pod is told its own address and name, and by its hosts file where Redis' Service would
lead; probes and ports are left out, volumes named for their pod, and images are those that were
built here. Everything else is as rendered.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import yaml

Object = dict[str, Any]
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class Network:
    """A subnet that few others have, its addresses given away in order."""

    def __init__(self) -> None:
        self.name = f"baton-test-{os.getpid()}"
        self._head = f"10.213.{os.getpid() % 250}"
        self._last = 9

    @property
    def subnet(self) -> str:
        return f"{self._head}.0/24"

    def give_address(self) -> str:
        self._last += 1
        return f"{self._head}.{self._last}"


def playable(
    deployment: Object, *, address: str, images: Mapping[str, str], hosts: Mapping[str, str]
) -> str:
    """The manifest. `images` by the component's container, `hosts`: names and their addresses."""
    told = deepcopy(deployment)
    name = told["metadata"]["name"]
    pod = told["spec"]["template"]["spec"]
    pod["hostAliases"] = [{"ip": ip, "hostnames": [host]} for host, ip in hosts.items()]
    (container,) = pod["containers"]
    for left_out in (*PROBES, "ports"):
        container.pop(left_out, None)
    container["image"] = images[container["name"]]
    container["imagePullPolicy"] = "Never"
    for one in (*pod["volumes"], *container["volumeMounts"]):
        one["name"] = f"{name}-{one['name']}"
    own = {"POD_NAME": name, "POD_IP": address}
    for variable in container.get("env", []):
        if variable["name"] in own:
            del variable["valueFrom"]
            variable["value"] = own[variable["name"]]
    container["args"] = [_expanded(arg, own) for arg in container["args"]]
    return str(yaml.safe_dump(told))


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    return text
