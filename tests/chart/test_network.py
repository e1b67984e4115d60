"""Who may reach whom: ports by name inwards, no more than is needed outwards."""

from typing import Any

import helm_python as helm
import pytest
from support.chart import container, deployment, pods, render

from controlplane.local.workers_settings import KV_PORTS
from kvtransfer.transports.planes import PORTS, port_of

Object = dict[str, Any]
NOT_WORKERS = {"router", "redis", "test"}
NAMES, REDIS = {53, 5353}, {6379}


def policies(**values: Any) -> dict[str, Object]:
    found = render(**values)
    return {
        name.removeprefix("NetworkPolicy/demo-baton-"): thing["spec"]
        for name, thing in found.items()
        if name.startswith("NetworkPolicy/")
    }


def ports(rules: list[Object], named: dict[str, int] | None = None) -> set[int]:
    """All of them; names are those of a container."""
    told = [one for rule in rules for one in rule.get("ports", [])]
    assert not any("endPort" in one for one in told), "Kubernetes 1.20 has no ranges"
    return {(named or {}).get(one["port"], one["port"]) for one in told}


def kv_ports(first: int, num_workers: int = 1) -> set[int]:
    """Where workers are asked for KV, and where planes with a port of theirs move it."""
    firsts = [first + KV_PORTS * number for number in range(num_workers)]
    return set(firsts) | {port_of(plane, one) for one in firsts for plane in PORTS}


def test_every_service_and_policy_selects_pods_that_exist() -> None:
    found = render(pools=[{"name": "more", "role": "decode", "replicas": 1}])
    labels = [thing["spec"]["template"]["metadata"]["labels"] for thing in pods(found).values()]
    selectors = [t["spec"]["selector"] for n, t in found.items() if n.startswith("Service/")]
    selectors += [
        thing["spec"][key]["matchLabels"]
        for name, thing in found.items()
        for key in ("podSelector", "selector")
        if name.startswith(("NetworkPolicy/", "PodDisruptionBudget/")) and key in thing["spec"]
    ]
    assert len(selectors) == 3 + 6 + 4
    for selector in selectors:
        assert any(selector.items() <= one.items() for one in labels)


def test_every_pod_has_a_policy_for_both_directions() -> None:
    found = policies()
    assert set(found) == {"router", "prefill", "decode", "redis", "test"}
    assert all(one["policyTypes"] == ["Ingress", "Egress"] for one in found.values())
    assert policies(networkPolicy={"enabled": False}) == {}


def test_ports_inwards_are_those_that_containers_name() -> None:
    found = policies()
    for role in ("router", "prefill", "decode", "redis"):
        named = named_ports(deployment(role))
        assert ports(found[role]["ingress"], named) == set(named.values())


def test_routers_reach_control_ports_and_workers_each_others_kv() -> None:
    found = policies(decode={"ports": {"control": 7300, "kv": 7500}})
    assert ports(found["router"]["egress"]) == NAMES | REDIS | {9300, 7300}
    for role in ("prefill", "decode"):
        assert ports(found[role]["egress"]) == NAMES | REDIS | kv_ports(9500) | kv_ports(7500)
    assert found["redis"]["egress"] == []


def test_kv_comes_in_by_the_ports_on_which_workers_listen() -> None:
    """Asked on one, moved on the next: with the first alone every fetch fails."""
    found = policies(decode={"ports": {"kv": 7500}})
    for role, first in (("prefill", 9500), ("decode", 7500)):
        (rule,) = [one for one in found[role]["ingress"] if _of_workers(one.get("from", []))]
        assert ports([rule]) == kv_ports(first)
    assert len(kv_ports(9500)) == KV_PORTS == 1 + len(PORTS)


def test_what_takes_random_ports_gets_all_of_them_between_workers() -> None:
    found = policies(prefill={"gpu": {"count": 1}}, decode={"gpu": {"count": 1}})
    (to_workers,) = [one for one in found["decode"]["egress"] if _of_workers(one.get("to", []))]
    assert "ports" not in to_workers
    (from_workers,) = [
        one for one in found["decode"]["ingress"] if _of_workers(one.get("from", []))
    ]
    assert "ports" not in from_workers


def test_a_node_of_several_workers_has_a_port_for_each() -> None:
    found = policies(layout="node", node={"prefill": 1, "decode": 3})
    control, kv = set(range(9300, 9304)), kv_ports(9500, 4)
    assert ports(found["router"]["egress"]) == NAMES | REDIS | control
    assert ports(found["node"]["egress"]) == NAMES | REDIS | kv
    of_routers, of_workers, of_anybody = found["node"]["ingress"]
    assert (ports([of_routers]), ports([of_workers])) == (control, kv)
    assert of_anybody["ports"] == [{"port": "metrics"}]
    named = named_ports(deployment("node", layout="node", node={"prefill": 1, "decode": 3}))
    assert set(named.values()) == control | kv | {9400}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (
            {"worker": {"hostNetwork": True}},
            r"decode\.ports\.control: 9300 .* prefill\.ports\.control",
        ),
        (
            {"worker": {"hostNetwork": True}, "decode": {"ports": {"control": 9310, "kv": 9503}}},
            r"decode\.ports\.kv: 9503 to 9506 are also prefill\.ports\.kv, 9500 to 9503, and with",
        ),
        (
            {"decode": {"ports": {"kv": 9298}}},
            r"decode\.ports\.kv: 9298 to 9301 .*\.ports\.control",
        ),
        ({"decode": {"ports": {"kv": 65533}}}, r"decode\.ports\.kv: .* up to 65536"),
    ],
)
def test_ports_that_would_be_taken_twice_are_refused(values: Object, why: str) -> None:
    with pytest.raises(helm.HelmError, match=why):
        render(**values)


def test_pools_of_other_nodes_may_have_the_same_ports() -> None:
    render(worker={"hostNetwork": True}, decode={"nodeSelector": {"kind": "big"}})
    render(prefill={"hostNetwork": True})


def test_clients_may_be_named_and_tests_are_among_them() -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"name": "gateway"}}}
    (rule,) = policies(networkPolicy={"clients": [gateway]})["router"]["ingress"]
    assert rule["from"][0] == gateway
    assert rule["from"][1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    (anybody,) = policies()["router"]["ingress"]
    assert "from" not in anybody


def test_who_reads_metrics_reaches_routers_too() -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"name": "gateway"}}}
    prometheus = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    found = policies(networkPolicy={"clients": [gateway], "metrics": [prometheus]})
    (rule,) = found["router"]["ingress"]
    assert prometheus in rule["from"] and gateway in rule["from"]
    assert found["decode"]["ingress"][-1]["from"] == [prometheus]
    (anybody,) = policies(networkPolicy={"metrics": [prometheus]})["router"]["ingress"]
    assert "from" not in anybody


def test_who_fetches_a_model_may_reach_it() -> None:
    of_hub = policies(model={"huggingFace": "org/m"})["decode"]["egress"]
    assert {443, 80} <= ports(of_hub)
    url = {"url": "http://files.internal:8081/m/SHA256SUMS", "servedName": "m"}
    assert 8081 in ports(policies(model=url)["decode"]["egress"])
    assert 443 not in ports(policies()["decode"]["egress"])


def test_an_external_redis_is_reached_at_its_port() -> None:
    outside = {"redis": {"enabled": False}, "externalRedis": {"url": "rediss://r.example:6380/0"}}
    assert 6380 in ports(policies(**outside)["router"]["egress"])
    outside["externalRedis"] = {"url": "redis://r.example"}
    assert 6379 in ports(policies(**outside)["router"]["egress"])


def named_ports(thing: Object) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in container(thing)["ports"]}


def _of_workers(peers: list[Object]) -> bool:
    return any(
        set(match.get("values", [])) == NOT_WORKERS
        for peer in peers
        for match in peer.get("podSelector", {}).get("matchExpressions", [])
    )
