"""Who may reach whom: ports by name inwards, no more than is needed outwards."""

from typing import Any

from support.chart import container, pods, render

Object = dict[str, Any]
NOT_WORKERS = {"router", "redis", "test"}


def policies(**values: Any) -> dict[str, Object]:
    found = render(**values)
    return {
        name.removeprefix("NetworkPolicy/demo-baton-"): thing["spec"]
        for name, thing in found.items()
        if name.startswith("NetworkPolicy/")
    }


def ports(rules: list[Object]) -> set[Any]:
    return {one.get("port") for rule in rules for one in rule.get("ports", [])}


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
        named = {
            one["name"] for one in container(render()[f"Deployment/demo-baton-{role}"])["ports"]
        }
        assert ports(found[role]["ingress"]) == named


def test_routers_reach_control_ports_and_workers_each_others_kv() -> None:
    found = policies(decode={"ports": {"control": 7300, "kv": 7500}})
    assert ports(found["router"]["egress"]) == {53, 5353, 6379, 9300, 7300}
    for role in ("prefill", "decode"):
        assert ports(found[role]["egress"]) == {53, 5353, 6379, 9500, 7500}
    assert found["redis"]["egress"] == []


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
    assert {"port": 9300, "endPort": 9303} in found["router"]["egress"][-1]["ports"]
    assert {"port": 9300, "endPort": 9303} in found["node"]["ingress"][0]["ports"]
    assert found["node"]["ingress"][-1]["ports"] == [{"port": "metrics"}]


def test_clients_may_be_named_and_tests_are_among_them() -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"name": "gateway"}}}
    (rule,) = policies(networkPolicy={"clients": [gateway]})["router"]["ingress"]
    assert rule["from"][0] == gateway
    assert rule["from"][1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    (anybody,) = policies()["router"]["ingress"]
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


def _of_workers(peers: list[Object]) -> bool:
    return any(
        set(match.get("values", [])) == NOT_WORKERS
        for peer in peers
        for match in peer.get("podSelector", {}).get("matchExpressions", [])
    )
