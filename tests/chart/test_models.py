"""Where models come from: fetched into a cache by one container, mounted read-only by the other."""

from typing import Any

import pytest
from support.chart import container, deployment, pod, render, settings_of

from decode_worker.settings import DecodeSettings

CLAIM = {"persistentVolumeClaim": {"claimName": "c", "readOnly": True}}


def folder(**model: Any) -> str:
    return str(settings_of(deployment("decode", model=model), DecodeSettings).model)


@pytest.mark.parametrize(
    ("model", "volume"),
    [
        ({"existingClaim": "c"}, CLAIM),
        ({"hostPath": "/m"}, {"hostPath": {"path": "/m", "type": "Directory"}}),
        ({"image": "r/m:1"}, {"image": {"reference": "r/m:1", "pullPolicy": "IfNotPresent"}}),
    ],
)
def test_a_model_that_is_there_is_mounted_and_never_written(
    model: dict[str, Any], volume: dict[str, Any]
) -> None:
    thing = deployment("decode", model={**model, "path": "a/b"})
    assert folder(**model, path="a/b") == "/models/a/b"
    assert folder(**model, path=".") == "/models"
    (found,) = [one for one in pod(thing)["volumes"] if one["name"] == "models"]
    assert found == {"name": "models", **volume}
    (mount,) = [one for one in container(thing)["volumeMounts"] if one["name"] == "models"]
    assert mount["readOnly"] and "initContainers" not in pod(thing)


def test_a_model_of_the_hub_is_fetched_by_the_workers_own_image() -> None:
    model = {"huggingFace": "org/m", "revision": "refs/pr/1", "tokenSecret": {"name": "hub"}}
    own = {"gpu": {"count": 1}, "env": [{"name": "HF_ENDPOINT", "value": "http://hub"}]}
    thing = deployment("decode", model=model, decode=own)
    (fetcher,) = pod(thing)["initContainers"]
    assert fetcher["image"] == container(thing)["image"]
    told = ["fetch", "--model", "org/m@refs/pr/1", "--cache", "/cache"]
    assert fetcher["args"] == ["controlplane.cli.entry", *told]
    assert {one["name"] for one in fetcher["env"]} == {"HF_TOKEN", "HF_ENDPOINT"}
    assert folder(**model) == "/cache/org/m@refs--pr--1"
    assert folder(huggingFace="org/m") == "/cache/org/m@main"


def test_a_model_by_address_is_fetched_under_the_name_it_is_served_by() -> None:
    model = {"url": "https://x/m/SHA256SUMS", "sha256": "a" * 64, "servedName": "org/m"}
    (fetcher,) = pod(deployment("prefill", model=model))["initContainers"]
    args = fetcher["args"]
    assert args[2:8] == ["--model", model["url"], "--name", "org/m", "--sha256", "a" * 64]
    assert folder(**model) == "/cache/org/m@main"


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "9Gi"}, {"emptyDir": {"sizeLimit": "9Gi"}}),
        ({"existingClaim": "c"}, {"persistentVolumeClaim": {"claimName": "c"}}),
        ({"hostPath": "/c"}, {"hostPath": {"path": "/c", "type": "DirectoryOrCreate"}}),
    ],
)
def test_only_the_fetcher_writes_into_the_cache(
    cache: dict[str, Any], volume: dict[str, Any]
) -> None:
    thing = deployment("decode", model={"huggingFace": "org/m", "cache": cache})
    (found,) = [one for one in pod(thing)["volumes"] if one["name"] == "cache"]
    assert found == {"name": "cache", **volume}
    (mount,) = [one for one in container(thing)["volumeMounts"] if one["name"] == "cache"]
    assert mount["readOnly"]
    (fetcher,) = pod(thing)["initContainers"]
    assert {"name": "cache", "mountPath": "/cache"} in fetcher["volumeMounts"]


def test_a_daemon_warms_model_and_image_on_the_nodes_of_a_pool() -> None:
    own = {"nodeSelector": {"gpu": "h100"}, "tolerations": [{"operator": "Exists"}]}
    model = {"huggingFace": "org/m", "prefetch": True, "cache": {"hostPath": "/c"}}
    things = render(model=model, prefill=own)
    daemon = pod(things["DaemonSet/demo-baton-prefill-prefetch"])
    pool = pod(things["Deployment/demo-baton-prefill"])
    assert daemon["nodeSelector"] == pool["nodeSelector"] == {"gpu": "h100"}
    assert daemon["tolerations"] == pool["tolerations"]
    assert daemon["initContainers"] == pool["initContainers"]
    assert daemon["containers"][0]["image"] == pool["containers"][0]["image"]


def test_a_pool_with_a_model_of_its_own_takes_nothing_of_the_others() -> None:
    big = {"huggingFace": "org/big", "maxModelLen": 4096}
    things = render(
        model={"existingClaim": "c", "path": "small", "servedName": "small", "dtype": "float32"},
        pools=[{"name": "big", "role": "decode", "replicas": 1, "model": big}],
    )
    found = settings_of(things["Deployment/demo-baton-big"], DecodeSettings)
    assert str(found.model) == "/cache/org/big@main"
    assert (found.served_name, found.max_model_len, found.dtype) == ("", 4096, "float32")
    first = settings_of(things["Deployment/demo-baton-decode"], DecodeSettings)
    assert (str(first.model), first.served_name) == ("/models/small", "small")


def test_the_small_model_is_inside_the_image() -> None:
    assert folder() == "/opt/baton/models/tiny"
