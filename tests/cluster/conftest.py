"""One control plane for the tests of a run, with nodes of two kinds of GPU for pools, one with a
single GPU, and two with none."""

import re
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from support.eventually import eventually
from support.kube.api import Api, Object
from support.kube.control_plane import ControlPlane, built_folder, control_plane
from support.kube.installed import Installed, namespace
from support.kube.kubelets import Kind, Kubelets, nodes

COMPUTE = Kind(name="compute", product="NVIDIA-H100-80GB-HBM3", num_gpus=4)
BANDWIDTH = Kind(name="bandwidth", product="NVIDIA-A100-SXM4-80GB", num_gpus=4, num_nodes=2)
SINGLE = Kind(name="single", product="NVIDIA-L40S", num_gpus=1)
PLAIN = Kind(name="plain", num_nodes=2)
APPROVED = {"api-approved.kubernetes.io": "unapproved, of tests"}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OF_OPERATORS = (
    ("keda.sh", "v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com", "v1", "PodMonitor"),
    ("monitoring.coreos.com", "v1", "PrometheusRule"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
)


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    programs = built_folder()
    assert programs is not None
    with control_plane(programs, tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="session")
def kubelets(plane: ControlPlane) -> Iterator[Kubelets]:
    with plane.api() as api, nodes(api, (COMPUTE, BANDWIDTH, SINGLE, PLAIN)) as running:
        yield running


@pytest.fixture(scope="session")
def extra_kinds(plane: ControlPlane) -> None:
    """Those of operators that the chart can make use of, whatever their objects say: that they say
    what the operators read is tested against the operators' own definitions."""
    with plane.api() as api:
        for group, version, kind in OF_OPERATORS:
            api.create(DEFINITIONS, _definition(group, version, kind))
        for group, version, kind in OF_OPERATORS:
            eventually(partial(_is_served, api, f"/apis/{group}/{version}/{kind.lower()}s"), 60)


def _definition(group: str, version: str, kind: str) -> Object:
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": APPROVED,
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{**served, "schema": {"openAPIV3Schema": anything}}],
        },
    }


def _is_served(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except httpx.HTTPStatusError:
        return False
    return True


@pytest.fixture
def release(
    plane: ControlPlane, kubelets: Kubelets, request: pytest.FixtureRequest
) -> Iterator[Installed]:
    """Nothing is installed yet."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:50].strip("-")
    assert kubelets.fault is None, kubelets.fault
    with namespace(plane, name) as installed:
        yield installed
