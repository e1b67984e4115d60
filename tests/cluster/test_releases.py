"""The chart on a real API server, by Helm's own code: installed, upgraded, rolled back, removed."""

import re
import shutil
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
from support.chart import CHART, ci_values
from support.eventually import eventually
from support.kube.api import Object
from support.kube.control_plane import built_folder
from support.kube.installed import COMPONENT, NAME, Installed
from support.kube.kubelets import GPU

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(built_folder() is None, reason="no control plane: make test-cluster"),
]
VALUES = ci_values()
TOO_NEW = {"ways-out": "resourceClaims"}
"""Of the examples, what a server of 1.20 does not know."""
PARTS = ("router", "prefill", "decode", "redis")
TWO_KINDS: dict[str, Any] = {
    "router": {"replicas": 2},
    "prefill": {"replicas": 2, "gpu": {"count": 1, "product": "NVIDIA-H100-80GB-HBM3"}},
    "decode": {"replicas": 4, "gpu": {"count": 1, "product": "NVIDIA-A100-SXM4-80GB"}},
}


@pytest.mark.parametrize("case", sorted(VALUES))
def test_the_server_takes_each_example(case: str, release: Installed, extra_kinds: None) -> None:
    if case in TOO_NEW:
        with pytest.raises(helm.HelmError, match=TOO_NEW[case]):
            release.install(**VALUES[case])
    else:
        release.install(**VALUES[case])
        assert release.deployment("router")


def test_pools_run_on_their_own_kind_of_gpu(release: Installed) -> None:
    release.install(**TWO_KINDS)
    release.wait_rolled_out(*PARTS)
    assert _node_kinds(release.pods("prefill")) == ["compute"] * 2
    assert _node_kinds(release.pods("decode")) == ["bandwidth"] * 4
    for pod in release.pods():
        gpus = [one["resources"]["limits"].get(GPU) for one in pod["spec"]["containers"]]
        has = ["1"] if pod["metadata"]["labels"][COMPONENT] in ("prefill", "decode") else [None]
        assert gpus == has
        mounts = [one["volumeMounts"] for one in pod["spec"]["containers"]]
        assert "serviceaccount" not in str(mounts), "a token for the API"


def test_a_new_image_leaves_redis_and_a_new_chart_everything(
    release: Installed, tmp_path: Path
) -> None:
    release.install(router={"replicas": 2})
    release.wait_rolled_out(*PARTS)
    before = {part: release.uids(part) for part in PARTS}
    release.upgrade(chart=_with_version(tmp_path, "0.9.9"))
    release.wait_rolled_out(*PARTS)
    assert {part: release.uids(part) for part in PARTS} == before
    release.upgrade(image={"tag": "2"})
    release.wait_rolled_out(*PARTS)
    after = {part: release.uids(part) for part in PARTS}
    assert [part for part in PARTS if after[part] & before[part]] == ["redis"]
    assert _images(release, "router") == {"baton-router:2"}


def test_a_rollback_brings_back_what_was(release: Installed) -> None:
    release.install(image={"repository": "baton", "tag": "1"}, decode={"replicas": 2})
    release.wait_rolled_out(*PARTS)
    release.upgrade(image={"tag": "2"}, decode={"replicas": 3})
    release.wait_rolled_out(*PARTS)
    release.config.rollback(NAME, version=1)
    release.wait_rolled_out(*PARTS)
    assert _images(release, "decode") == {"baton-worker-cpu:1"}
    assert release.num_replicas("decode") == 2
    assert [one["revision"] for one in release.config.history(NAME)] == [1, 2, 3]


def test_an_uninstall_leaves_nothing(release: Installed) -> None:
    release.install(autoscaler={"enabled": True}, router={"autoscaling": {"enabled": True}})
    release.wait_rolled_out("redis", "prefill", "decode")
    assert len(_objects(release)) > 20
    release.config.uninstall(NAME)
    eventually(lambda: not _objects(release), 60, "nothing of it")


def _with_version(folder: Path, version: str) -> Path:
    chart = Path(shutil.copytree(CHART, folder / "baton"))
    told = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(
        re.sub("^version: .*", f"version: {version}", told, flags=re.M)
    )
    return chart


def _node_kinds(pods: list[Object]) -> list[str]:
    return [pod["spec"]["nodeName"].rpartition("-")[0] for pod in pods]


def _images(release: Installed, component: str) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in release.pods(component)}


def _objects(release: Installed) -> set[str]:
    """What is there of the release: its own, and what the controllers made of that."""
    space = f"namespaces/{release.namespace}"
    paths = [
        *(f"/api/v1/{space}/{kind}" for kind in ("pods", "services", "configmaps", "secrets")),
        f"/api/v1/{space}/serviceaccounts",
        *(f"/apis/apps/v1/{space}/{kind}" for kind in ("deployments", "replicasets")),
        f"/apis/networking.k8s.io/v1/{space}/networkpolicies",
        f"/apis/policy/v1beta1/{space}/poddisruptionbudgets",
        f"/apis/autoscaling/v2beta2/{space}/horizontalpodautoscalers",
        f"/apis/rbac.authorization.k8s.io/v1/{space}/roles",
        f"/apis/rbac.authorization.k8s.io/v1/{space}/rolebindings",
    ]
    return {
        f"{path.rpartition('/')[2]}/{one['metadata']['name']}"
        for path in paths
        for one in release.api.items(path)
        if NAME in one["metadata"]["name"]
    }
