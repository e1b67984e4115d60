"""Pools scaled by hand while Helm goes on upgrading, and rolled where no GPU is spare."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import helm_python as helm
import pytest
import yaml
from support.chart import CHART
from support.eventually import eventually
from support.kube.control_plane import built_folder
from support.kube.installed import NAME, Installed
from support.kube.kubelets import Kubelets
from support.source_tree import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(built_folder() is None, reason="no control plane: make test-cluster"),
]
H100 = "NVIDIA-H100-80GB-HBM3"


def test_replicas_of_whoever_scales_outlive_upgrades(release: Installed) -> None:
    release.install(decode={"replicas": None})
    assert release.num_replicas("decode") == 1
    _scale(release, 4)
    release.upgrade(image={"tag": "2"})
    release.wait_rolled_out("decode")
    assert (release.num_replicas("decode"), len(release.pods("decode"))) == (4, 4)


def test_an_upgrade_refuses_to_undo_what_somebody_scaled(release: Installed) -> None:
    release.install(decode={"replicas": 2})
    _scale(release, 4)
    with pytest.raises(helm.HelmError, match=r'conflict with "kubectl".*\n?.*spec\.replicas'):
        release.upgrade(image={"tag": "2"})
    assert release.num_replicas("decode") == 4


def test_from_a_number_to_null_a_pool_keeps_its_size(release: Installed) -> None:
    """As docs/kubernetes.md says: somebody else owns the field first."""
    release.name = "baton"
    release.install(decode={"replicas": 4})
    told = re.search("<<END\n(.*)\nEND", (ROOT / "docs" / "kubernetes.md").read_text())
    assert told is not None
    owned = yaml.safe_load(told[1])
    owned["metadata"].pop("namespace")
    path = release.api.path_of(owned, release.namespace)
    release.api.apply(path, owned, manager="scaler", force=True)
    release.wait_rolled_out("decode")
    before = release.uids("decode")
    release.upgrade(decode={"replicas": None})
    release.wait_rolled_out("decode")
    assert (release.num_replicas("decode"), release.uids("decode")) == (4, before)
    _scale(release, 6)
    release.upgrade(image={"tag": "2"})
    assert release.num_replicas("decode") == 6


def test_from_a_number_to_null_without_another_owner_one_is_left(release: Installed) -> None:
    """Why docs/kubernetes.md says what it says."""
    release.install(decode={"replicas": 4})
    release.upgrade(decode={"replicas": None})
    assert release.num_replicas("decode") == 1


def test_numbers_of_before_are_kept_when_values_are_reused(release: Installed) -> None:
    """Helm's `--reuse-values` takes no null the first time, and drops the pool the second: why
    docs/kubernetes.md says to give all of them."""
    release.install(decode={"replicas": 4})
    change = {"decode": {"replicas": None}}
    for left in (4, 1):
        release.config.upgrade(str(CHART), NAME, change, reuse_values=True)
        assert release.num_replicas("decode") == left


def test_a_pool_without_a_spare_gpu_is_rolled(release: Installed) -> None:
    release.install(prefill={"replicas": 4, "gpu": {"count": 1, "product": H100}})
    release.wait_rolled_out("prefill")
    before = release.uids("prefill")
    with _seen(release, "prefill", "availableReplicas") as numbers:
        release.upgrade(image={"tag": "2"})
        release.wait_rolled_out("prefill")
    assert not before & release.uids("prefill")
    assert min(numbers) >= 3, "one at a time"


def test_one_replica_alone_on_its_gpu_is_rolled_when_told_that_none_is_spare(
    release: Installed, kubelets: Kubelets
) -> None:
    release.install(prefill={"replicas": 1, "gpu": {"count": 1, "product": "NVIDIA-L40S"}})
    release.wait_rolled_out("prefill", "decode")
    before = release.uids("prefill")
    release.upgrade(image={"tag": "2"})

    def waits() -> bool:
        new = [pod for pod in release.pods("prefill") if pod["metadata"]["uid"] not in before]
        return any(pod["metadata"]["name"] in kubelets.not_placed for pod in new)

    eventually(waits, 60, "its successor waits for a GPU")
    assert before <= release.uids("prefill"), "it serves meanwhile"
    release.upgrade(prefill={"rollout": {"maxSurge": 0, "maxUnavailable": 1}})
    release.wait_rolled_out("prefill", "decode")
    assert not before & release.uids("prefill")


def _scale(release: Installed, replicas: int) -> None:
    """As `kubectl scale`: but servers of 1.20 do not yet note who wrote through `/scale`."""
    change = {"spec": {"replicas": replicas}}
    release.api.merge(release.path("decode"), change, manager="kubectl")
    scale = release.api.get(f"{release.path('decode')}/scale")
    assert scale["spec"]["replicas"] == replicas


@contextmanager
def _seen(release: Installed, component: str, field: str) -> Iterator[list[int]]:
    """Of that Deployment's status, meanwhile."""
    seen: list[int] = []
    ends = threading.Event()

    def look() -> None:
        while not ends.wait(0.02):
            seen.append(int(release.deployment(component)["status"].get(field, 0)))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            ends.set()
        looking.result()
    assert len(seen) > 3, "it was hardly looked at"
