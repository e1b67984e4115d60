"""Budgets, autoscalers and accounts, in the versions that the server has."""

from http import HTTPStatus

import httpx
import pytest
from support.eventually import eventually
from support.kube.api import Object
from support.kube.control_plane import built_folder
from support.kube.installed import NAME, Installed
from support.kube.kubelets import Kubelets

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(built_folder() is None, reason="no control plane: make test-cluster"),
]
BUDGETS = "/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets"
ALLOWED = (
    ("patch", "apps/deployments/scale", "demo-baton-decode"),
    ("get", "apps/deployments/scale", "demo-baton-prefill"),
    ("create", "coordination.k8s.io/leases", ""),
    ("update", "coordination.k8s.io/leases", "demo-baton-autoscaler"),
    ("watch", "/pods", ""),
)
FORBIDDEN = (
    ("patch", "apps/deployments/scale", "demo-baton-router"),
    ("patch", "apps/deployments/scale", "another"),
    ("patch", "apps/deployments", "demo-baton-decode"),
    ("update", "coordination.k8s.io/leases", "another"),
    ("delete", "/pods", ""),
    ("get", "/secrets", ""),
)
"""A verb, group/resource, and the object's name."""
SCALERS = "/apis/autoscaling/v2beta2/namespaces/{}/horizontalpodautoscalers"


def test_of_a_pool_one_pod_at_a_time_is_evicted(release: Installed, kubelets: Kubelets) -> None:
    release.install(decode={"replicas": 3})
    release.wait_rolled_out("decode")
    budget = BUDGETS.format(release.namespace) + f"/{NAME}-baton-decode"

    def allowed() -> int:
        return int(release.api.get(budget).get("status", {}).get("disruptionsAllowed", 0))

    eventually(lambda: allowed() == 1, 60, "one may go")
    first, second, _ = release.pods("decode")
    kubelets.starts_pods = False
    try:
        _evict(release, first)
        with pytest.raises(httpx.HTTPStatusError) as refused:
            _evict(release, second)
    finally:
        kubelets.starts_pods = True
    assert refused.value.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    release.wait_rolled_out("decode")
    eventually(lambda: allowed() == 1, 60, "the next may go")


def test_routers_are_scaled_by_an_autoscaler_that_the_server_knows(release: Installed) -> None:
    release.install(router={"autoscaling": {"enabled": True, "minReplicas": 3}})
    found = release.api.get(SCALERS.format(release.namespace) + f"/{NAME}-baton-router")
    assert found["spec"]["scaleTargetRef"]["name"] == f"{NAME}-baton-router"
    assert found["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    eventually(lambda: release.num_replicas("router") == 3, 60, "the least that it may have")


def test_who_scales_may_do_that_and_no_more(release: Installed) -> None:
    release.install(autoscaler={"enabled": True})
    eventually(lambda: _may(release, *ALLOWED[0]), 60, "the account's role is there")
    assert [one for one in ALLOWED if not _may(release, *one)] == []
    assert [one for one in FORBIDDEN if _may(release, *one)] == []


def _may(release: Installed, verb: str, resource: str, name: str) -> bool:
    group, kind, *of_it = resource.split("/")
    asked = {
        "namespace": release.namespace, "verb": verb, "group": group, "resource": kind,
        "subresource": "".join(of_it), "name": name,
    }  # fmt: skip
    account = f"system:serviceaccount:{release.namespace}:{NAME}-baton-autoscaler"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": asked},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(release.api.create(path, review)["status"]["allowed"])


def _evict(release: Installed, pod: Object) -> None:
    meta = {"name": pod["metadata"]["name"], "namespace": release.namespace}
    path = f"/api/v1/namespaces/{release.namespace}/pods/{meta['name']}/eviction"
    body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": meta}
    release.api.create(path, body)
