"""Redis of the release, or one that is there: parts by environment, no secret in sight."""

from itertools import pairwise
from typing import Any

from support.chart import container, deployment, pod, pods, render, settings_of

from decode_worker.settings import DecodeSettings
from router.settings import RouterSettings

OURS = ("router", "prefill", "decode")


def environment(thing: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(thing)["env"]}


def secret(name: str, key: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


def test_keys_begin_with_namespace_and_release() -> None:
    for role in OURS:
        assert environment(deployment(role))["BATON_REDIS_PREFIX"] == "ns/demo:"
    found = settings_of(deployment("decode", redisPrefix="mine:"), DecodeSettings)
    assert found.redis_prefix == "mine:"


def test_no_process_is_told_of_redis_by_an_argument() -> None:
    for role in OURS:
        assert "--redis" not in container(deployment(role))["args"]


def test_a_password_comes_from_a_secret_and_is_in_nobodys_arguments() -> None:
    things = render(redis={"auth": {"existingSecret": "pw", "passwordKey": "key"}})
    for role in OURS:
        thing = things[f"Deployment/demo-baton-{role}"]
        assert environment(thing)["BATON_REDIS_PASSWORD"] == secret("pw", "key")
    redis = container(things["Deployment/demo-baton-redis"])
    assert redis["env"] == [{"name": "REDISCLI_AUTH", "valueFrom": secret("pw", "key")}]
    assert "$(REDISCLI_AUTH)" not in str(redis), "what is expanded is an argument"
    assert "--maxmemory-policy noeviction" in redis["command"][2]


def test_an_external_redis_replaces_ours_by_parts() -> None:
    auth = {"existingSecret": "r", "usernameKey": "u", "passwordKey": "p"}
    outside = {"url": "rediss://redis.example:6380/3", "auth": auth, "caSecret": {"name": "ca"}}
    things = render(redis={"enabled": False}, externalRedis=outside)
    assert not any("redis" in name for name in things)
    for role in OURS:
        thing = things[f"Deployment/demo-baton-{role}"]
        told = environment(thing)
        assert told["BATON_REDIS_USERNAME"] == secret("r", "u")
        assert told["BATON_REDIS_PASSWORD"] == secret("r", "p")
        assert {"name": "redis-ca", "mountPath": "/etc/baton/redis", "readOnly": True} in container(
            thing
        )["volumeMounts"]
        (volume,) = [one for one in pod(thing)["volumes"] if one["name"] == "redis-ca"]
        assert volume["secret"]["secretName"] == "ca"
    address = settings_of(things["Deployment/demo-baton-router"], RouterSettings).redis_address
    assert address.url == "rediss://redis.example:6380/3"
    assert address.ca == "/etc/baton/redis/ca.crt"


def test_the_whole_address_may_be_a_secret() -> None:
    outside = {"auth": {"existingSecret": "r", "urlKey": "url"}}
    thing = deployment("router", redis={"enabled": False}, externalRedis=outside)
    assert environment(thing)["BATON_REDIS"] == secret("r", "url")
    assert "BATON_REDIS_CA" not in environment(thing)


def test_an_authority_holds_for_an_address_that_is_a_secret_too() -> None:
    outside = {"auth": {"existingSecret": "r", "urlKey": "url"}, "caSecret": {"name": "ca"}}
    for role in OURS:
        thing = deployment(role, redis={"enabled": False}, externalRedis=outside)
        assert environment(thing)["BATON_REDIS_CA"] == "/etc/baton/redis/ca.crt"


def test_ours_keeps_nothing_and_evicts_nothing() -> None:
    args = container(deployment("redis"))["args"]
    told = dict(pairwise(args))
    assert (told["--save"], told["--appendonly"]) == ("", "no")
    assert (told["--maxmemory"], told["--maxmemory-policy"]) == ("384mb", "noeviction")


def test_only_what_is_baton_gets_what_batons_pods_have() -> None:
    things = render(
        pod={"env": [{"name": "A", "value": "b"}], "hostNetwork": True, "extraArgs": ["-x"]},
        decode={"ports": {"control": 9310, "metrics": 9410, "kv": 9510}},
    )
    redis = things["Deployment/demo-baton-redis"]
    assert "env" not in container(redis) and "hostNetwork" not in pod(redis)
    assert all(container(one)["env"] for name, one in pods(things).items() if "redis" not in name)
