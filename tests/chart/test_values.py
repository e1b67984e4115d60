"""Values that mean nothing are refused by their names; what operators try first works."""

import json
import re
from typing import Any

import helm_python as helm
import pytest
import yaml
from support.chart import CHART, container, deployment, objects, pod, render, rendered
from support.source_tree import ROOT

from tools.chart_schema import SCHEMA, laid_out, with_settings

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prefill": {"replicas": "two"}}, "/prefill/replicas"),
    ({"prefill": {"replicas": -1}}, "/prefill/replicas"),
    ({"no": {"such": "value"}}, "'no'"),
    ({"model": {"dtype": "int3"}}, "/model/dtype"),
    ({"worker": {"resources": {"limits": {"memroy": "4Gi"}}}}, "/worker/resources/limits"),
    ({"worker": {"resources": {"limits": {"memory": "4 GB"}}}}, "/worker/resources/limits/memory"),
    ({"worker": {"resources": {"limit": {"memory": "4Gi"}}}}, "/worker/resources"),
    ({"decode": {"env": [{"name": "X", "value": 1}]}}, "/decode/env/0/value"),
    ({"decode": {"env": [{"name": "X", "vlaue": "1"}]}}, "/decode/env/0"),
    ({"decode": {"env": [{"value": "1"}]}}, "/decode/env/0"),
    ({"decode": {"settings": {"tokenBugdet": 512}}}, "/decode/settings"),
    ({"decode": {"settings": {"tokenBudget": "many"}}}, "/decode/settings/tokenBudget"),
    ({"decode": {"settings": {"port": 1}}}, "/decode/settings"),
    ({"router": {"settings": {"policy": "best"}}}, "/router/settings/policy"),
    ({"router": {"livenessProbe": {"periodSecs": 1}}}, "/router/livenessProbe"),
    ({"router": {"service": {"type": "Ingress"}}}, "/router/service/type"),
    ({"router": {"aliases": {"prod": {}}}}, "/router/aliases/prod"),
    ({"worker": {"tolerations": [{"effect": "NoScedule"}]}}, "/worker/tolerations/0/effect"),
    ({"worker": {"topologySpreadConstraints": [{"maxSkew": 1}]}}, "/topologySpreadConstraints/0"),
    ({"worker": {"rollout": {"maxSurge": "25"}}}, "/worker/rollout/maxSurge"),
    ({"worker": {"volumeMounts": [{"name": "a"}]}}, "/worker/volumeMounts/0"),
    ({"pools": [{"name": "Big", "role": "decode"}]}, "/pools/0/name"),
    ({"pools": [{"name": "big"}]}, "/pools/0"),
    ({"pools": [{"name": "big", "role": "embed"}]}, "/pools/0/role"),
    ({"externalRedis": {"url": "redis://user:secret@redis:6379"}}, "/externalRedis/url"),
    ({"externalRedis": {"url": "redis.example"}}, "/externalRedis/url"),
    ({"image": {"digest": "sha256:abc"}}, "/image"),
    ({"image": {"repository": "baton:latest"}}, "/image/repository"),
    ({"model": {"path": "/models/llama"}}, "/model/path"),
    ({"model": {"huggingFace": "https://huggingface.co/org/x"}}, "/model/huggingFace"),
    ({"redis": {"maxmemory": "512Mi"}}, "/redis/maxmemory"),
    ({"layout": "single"}, "/layout"),
]

UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"image": {"repository": ""}}, r"image\.repository: .*make image"),
    ({"redis": {"enabled": False}}, r"externalRedis\.url: is needed when redis\.enabled is false"),
    (
        {
            "redis": {"enabled": False},
            "externalRedis": {"url": "redis://r", "caSecret": {"name": "ca"}},
        },
        r"externalRedis\.caSecret: .* rediss://",
    ),
    ({"model": {"existingClaim": "models"}}, r"model\.existingClaim: needs model\.path"),
    ({"model": {"path": "llama"}}, r"model\.path: llama: .* none of them is given"),
    ({"model": {"hostPath": "/m", "huggingFace": "a/b"}}, r"model: lies in one place, but"),
    ({"model": {"url": "https://x/SHA256SUMS"}}, r"model\.url: needs model\.servedName"),
    ({"model": {"revision": "abc"}}, r"model\.revision: is of model\.huggingFace"),
    ({"model": {"huggingFace": "a/b", "prefetch": True}}, r"model\.prefetch: .*hostPath"),
    (
        {"model": {"huggingFace": "a/b", "cache": {"existingClaim": "c", "hostPath": "/c"}}},
        r"model\.cache: is a claim or a folder",
    ),
    ({"decode": {"replicas": 0}}, r"decode\.replicas: is 0 and no other pool decodes"),
    ({"pools": [{"name": "decode", "role": "decode"}]}, r'the name "decode" is taken'),
    ({"pools": [{"name": "redis", "role": "decode"}]}, r'the name "redis" is taken'),
    ({"decode": {"settings": {"transports": "shm,tcp"}}}, r"decode\.settings\.transports: shm and"),
    ({"decode": {"gpu": {"count": 2}}}, r"decode\.gpu\.count: a worker computes on one GPU"),
    ({"layout": "node", "node": {"gpu": {"count": 8}}}, r"node\.gpu\.count: is 8, but prefill and"),
    ({"decode": {"autoscaling": {"enabled": True}}}, r"decode\.autoscaling\.prometheus: is needed"),
    (
        {"pools": [{"name": "x", "role": "decode", "model": {"existingClaim": "c"}}]},
        r"x\.model\.existingClaim: needs x\.model\.path",
    ),
]


@pytest.mark.parametrize(("values", "named"), REFUSED)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.HelmValuesError) as refused:
        rendered(values)
    assert named in str(refused.value)


@pytest.mark.parametrize(("values", "why"), UNFIT)
def test_values_that_do_not_go_together_are_refused_with_what_to_do(
    values: dict[str, Any], why: str
) -> None:
    with pytest.raises(helm.HelmError, match=why):
        rendered(values)


def test_settings_by_name_are_those_of_the_code() -> None:
    text = SCHEMA.read_text()
    assert laid_out(with_settings(json.loads(text))) + "\n" == text, (
        "python -m tools.chart_schema --write"
    )


def test_every_value_of_the_chart_is_known_to_the_schema() -> None:
    """Otherwise whoever sets it anew would be refused."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    defaults["image"]["repository"] = "baton"
    assert rendered(defaults) == rendered({})


def test_one_value_moves_all_images_to_a_mirror() -> None:
    own = {"registry": "mirror.example:5000/", "repository": "ml/baton", "tag": "7"}
    images = {
        name.rpartition("-")[2]: container(thing)["image"]
        for name, thing in render(image=own, layout="pods").items()
        if name.startswith(("Deployment", "Job"))
    }
    assert images == {
        "router": "mirror.example:5000/ml/baton-router:7",
        "prefill": "mirror.example:5000/ml/baton-worker-cpu:7",
        "decode": "mirror.example:5000/ml/baton-worker-cpu:7",
        "redis": "mirror.example:5000/ml/baton-redis:1",
        "test": "mirror.example:5000/ml/baton-worker-cpu:7",
    }


def test_a_pool_may_have_an_image_of_its_own_and_a_digest() -> None:
    digest = "sha256:" + "a" * 64
    found = container(deployment("decode", decode={"image": {"digest": digest}}))
    assert found["image"] == f"baton-worker-cpu@{digest}"
    found = container(deployment("decode", decode={"image": {"repository": "debug", "tag": "x"}}))
    assert found["image"] == "debug:x"


def test_what_operators_try_first_works() -> None:
    """What the old chart refused, or took and passed over."""
    tried = {
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "startupProbe": {"failureThreshold": 100},
        "serviceAccountName": "reader",
        "hostNetwork": True,
        "shmSize": "1Gi",
        "extraArgs": ["--log-level", "debug"],
        "envFrom": [{"secretRef": {"name": "proxies"}}],
        "sidecars": [{"name": "logs", "image": "logs"}],
    }
    thing = deployment("decode", decode=tried)
    metadata, spec, told = thing["spec"]["template"]["metadata"], pod(thing), container(thing)
    assert metadata["annotations"] == {"a": "b"} and metadata["labels"]["c"] == "d"
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("high", "nvidia")
    assert (spec["serviceAccountName"], spec["hostNetwork"]) == ("reader", True)
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert spec["containers"][1]["name"] == "logs"
    assert told["args"][-2:] == ["--log-level", "debug"]
    assert told["envFrom"] == tried["envFrom"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in told["volumeMounts"]
    assert told["startupProbe"]["failureThreshold"] == 100


def test_long_release_names_still_name_objects() -> None:
    for name in ("a" * 53, "baton-" + "b" * 47):
        for thing in objects({}, name=name):
            assert len(thing["metadata"]["name"]) <= 63


def test_notes_say_how_to_ask() -> None:
    notes = rendered({"model": {"huggingFace": "org/m"}})["baton/templates/NOTES.txt"]
    assert '"model": "org/m"' in notes and "/v1/chat/completions" in notes
    assert "port-forward service/demo-baton 8000:8000" in notes
    assert "Bearer" not in notes
    with_key = rendered({"router": {"apiKeySecret": {"name": "keys"}}})["baton/templates/NOTES.txt"]
    assert "Bearer $BATON_API_KEY" in with_key and '"model": "tiny"' in with_key


def test_make_image_makes_the_redis_that_the_chart_wants() -> None:
    (tag,) = re.findall(r"^REDIS_TAG \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert container(deployment("redis"))["image"] == f"baton-redis:{tag}"
