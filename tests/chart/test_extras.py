"""What is off until it is asked for: scaling, monitoring, entries; and what they name exists."""

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Histogram
from support.chart import CHART, pod, pods, render

from protocol.process.metrics import (
    MetricRow,
    RouterMetrics,
    TokenHistogram,
    TransferMetrics,
    WorkerMetrics,
)

OF_OTHERS = {"container_memory_working_set_bytes", "kube_pod_container_resource_limits"}
OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
PARTS: dict[object, tuple[str, ...]] = {
    Counter: ("_total",),
    Histogram: OF_HISTOGRAMS,
    TokenHistogram: OF_HISTOGRAMS,
}
NAME = re.compile(r"\b(?:baton|container|kube)_[a-z_]+")
PROMETHEUS = {"enabled": True, "prometheus": "http://p:9090"}


def known_series() -> set[str]:
    found = set(OF_OTHERS)
    for table in (RouterMetrics, WorkerMetrics, TransferMetrics):
        for row in vars(table).values():
            if isinstance(row, MetricRow):
                kind, name = row.made_in.func, row.made_in.args[0]
                found |= {name + part for part in PARTS.get(kind, ("",))}
    return found


def alerts() -> list[dict[str, Any]]:
    found = render(prometheusRule={"enabled": True})["PrometheusRule/demo-baton"]
    return list(found["spec"]["groups"][0]["rules"])


def dashboard() -> dict[str, Any]:
    found = render(dashboards={"enabled": True})["ConfigMap/demo-baton-dashboards"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    return dict(json.loads(found["data"]["baton.json"]))


def test_nothing_of_it_is_there_by_default() -> None:
    kinds = {name.partition("/")[0] for name in render()}
    assert kinds == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "Job"}


def test_every_series_that_an_alert_or_a_panel_names_is_measured() -> None:
    texts = [rule["expr"] for rule in alerts()]
    texts += [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    scaled = render(prefill={"autoscaling": PROMETHEUS}, decode={"autoscaling": PROMETHEUS})
    texts += [
        thing["spec"]["triggers"][0]["metadata"]["query"]
        for name, thing in scaled.items()
        if name.startswith("ScaledObject/")
    ]
    named = {name for text in texts for name in NAME.findall(text)}
    assert len(named) > 20
    assert named <= known_series()
    for text in texts:
        assert text.count("(") == text.count(")") and text.count("{") == text.count("}")


def test_alerts_are_of_this_release_and_say_what_to_do() -> None:
    assert len(alerts()) == len({rule["alert"] for rule in alerts()}) >= 10
    for rule in alerts():
        assert 'namespace="ns",pod=~"demo-baton-.*"' in rule["expr"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
    assert "@ITS@" in (CHART / "files" / "alerts.yaml").read_text()


def test_pods_of_routers_and_workers_are_scraped_where_they_are_named() -> None:
    spec = render(podMonitor={"enabled": True})["PodMonitor/demo-baton"]["spec"]
    assert {one["port"] for one in spec["podMetricsEndpoints"]} == {"http", "metrics"}
    (unwanted,) = spec["selector"]["matchExpressions"]
    assert (unwanted["operator"], unwanted["values"]) == ("NotIn", ["redis", "test"])


def test_a_pool_is_scaled_by_its_own_pods() -> None:
    things = render(
        prefill={"autoscaling": PROMETHEUS},
        decode={"autoscaling": {**PROMETHEUS, "query": "up", "threshold": 0.8}},
    )
    prefill = things["ScaledObject/demo-baton-prefill"]["spec"]
    query = prefill["triggers"][0]["metadata"]["query"]
    assert 'pod=~"demo-baton-prefill-[a-z0-9]+-[a-z0-9]+"' in query
    assert prefill["scaleTargetRef"]["name"] == "demo-baton-prefill"
    decode = things["ScaledObject/demo-baton-decode"]["spec"]["triggers"][0]["metadata"]
    assert (decode["query"], decode["threshold"]) == ("up", "0.8")


def test_no_pod_has_a_token_of_the_api() -> None:
    for values in ({}, {"autoscaler": {"enabled": True}}):
        for thing in pods(render(**values)).values():
            assert pod(thing)["automountServiceAccountToken"] is False
    assert not any(name.startswith(("Role", "ServiceAccount")) for name in render())


def test_an_autoscaler_may_scale_the_pools_by_name_and_little_else() -> None:
    things = render(
        autoscaler={"enabled": True}, pools=[{"name": "big", "role": "decode", "replicas": 1}]
    )
    assert "ServiceAccount/demo-baton-autoscaler" in things
    rules = things["Role/demo-baton-autoscaler"]["rules"]
    named = {one["resources"][0]: one["resourceNames"] for one in rules if "resourceNames" in one}
    pools = [f"demo-baton-{name}" for name in ("prefill", "decode", "big")]
    assert named == {"deployments/scale": pools, "leases": ["demo-baton-autoscaler"]}
    free = {one["resources"][0]: one["verbs"] for one in rules if "resourceNames" not in one}
    assert free == {"leases": ["create"], "pods": ["list", "watch", "patch"]}


def test_routers_may_be_scaled_by_their_cpu() -> None:
    router = {"autoscaling": {"enabled": True, "maxReplicas": 5}}
    spec = render(router=router)["HorizontalPodAutoscaler/demo-baton-router"]["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 70


def test_a_budget_never_keeps_a_node_from_being_drained() -> None:
    budget = render()["PodDisruptionBudget/demo-baton-decode"]
    assert (budget["apiVersion"], budget["spec"]["maxUnavailable"]) == ("policy/v1", 1)
    own = {"disruptionBudget": {"maxUnavailable": None, "minAvailable": "50%"}}
    spec = render(decode=own)["PodDisruptionBudget/demo-baton-decode"]["spec"]
    assert (spec["minAvailable"], "maxUnavailable" in spec) == ("50%", False)
    none = render(pod={"disruptionBudget": None})
    assert not any(name.startswith("PodDisruptionBudget") for name in none)


@pytest.mark.parametrize("file", sorted((CHART / "files").glob("*.yaml")))
def test_files_of_the_chart_are_yaml(file: Any) -> None:
    assert yaml.safe_load(file.read_text())
