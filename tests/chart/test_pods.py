"""What every pod of the chart has, and what its processes are told."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.chart import container, deployment, environment_of, pod, pods, render, settings_of
from support.source_tree import ROOT

from controlplane.local.settings import load_with_children
from controlplane.local.workers_settings import NodeSettings
from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from router.settings import RouterSettings

WORKERS = (("prefill", PrefillSettings), ("decode", DecodeSettings))


def test_it_installs_one_of_each() -> None:
    deployments = {name for name in render() if name.startswith("Deployment/")}
    roles = ("router", "prefill", "decode", "redis")
    assert deployments == {f"Deployment/demo-baton-{role}" for role in roles}


def test_what_the_image_writes_lies_on_a_volume_that_any_user_can_write() -> None:
    """Compiled kernels, of C and of Triton: the root file system is read-only."""
    named = re.findall(r"\b(HOME|XDG_CACHE_HOME)=(\S+)", (ROOT / "Dockerfile").read_text())
    assert {name for name, _ in named} == {"HOME", "XDG_CACHE_HOME"}
    for role in ("router", "prefill", "decode"):
        thing = deployment(role)
        volumes = {one["name"]: one for one in pod(thing)["volumes"]}
        for _, folder in named:
            (mount,) = (
                one
                for one in container(thing)["volumeMounts"]
                if Path(folder).is_relative_to(one["mountPath"])
            )
            assert volumes[mount["name"]]["emptyDir"] == {} and not mount.get("readOnly")


def test_the_router_gets_settings_that_it_knows() -> None:
    thing = deployment("router", router={"settings": {"processes": 3, "policy": "random"}})
    settings = settings_of(thing, RouterSettings)
    assert container(thing)["args"][0] == "router"
    assert (settings.host, settings.port) == ("::", 8000)
    assert settings.redis_address.url == "redis://demo-baton-redis:6379/0"
    assert (settings.processes, settings.policy, settings.linger_s) == (3, "random", 5)


@pytest.mark.parametrize(("role", "known"), WORKERS)
def test_the_workers_get_settings_that_they_know(
    role: str, known: type[PrefillSettings | DecodeSettings]
) -> None:
    own = {"kvBlocks": 99, "tcpLanes": 4, "allowFallback": False, "kvSpinUs": 50.5}
    thing = deployment(role, **{role: {"settings": own}})
    settings = settings_of(thing, known)
    assert container(thing)["args"][0] == f"{role}_worker"
    assert (settings.worker, settings.host, settings.advertise) == ("pod-1", "::", "fd00::7")
    assert (settings.kv_blocks, settings.tcp_lanes) == (99, 4)
    assert (settings.allow_fallback, settings.kv_spin_us) == (False, 50.5)


def test_ports_of_workers_are_fixed_and_can_be_chosen() -> None:
    worker = settings_of(deployment("decode"), DecodeSettings)
    assert (worker.port, worker.metrics_port, worker.kv_port) == (9300, 9400, 9500)
    thing = deployment("decode", decode={"ports": {"kv": 7000}})
    assert settings_of(thing, DecodeSettings).kv_port == 7000
    named = {one["name"]: one["containerPort"] for one in container(thing)["ports"]}
    kv = {"kv": 7000, "kv-1": 7001, "kv-2": 7002, "kv-3": 7003}
    assert named == {"control": 9300, "metrics": 9400, **kv}


def test_a_router_mounts_no_model() -> None:
    thing = deployment("router", model={"existingClaim": "models", "path": "llama"})
    assert "--model" not in container(thing)["args"]
    assert [one["name"] for one in pod(thing)["volumes"]] == ["tmp"]


def test_a_pool_that_asks_for_a_gpu_computes_on_one_or_not_at_all() -> None:
    """`auto` would compute on the CPU where torch cannot use the GPU, and be ready."""
    asked: list[dict[str, Any]] = [
        {"gpu": {"count": 1}},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        {"resources": {"limits": {"amd.com/gpu": "1"}}},
        {"device": "cuda"},
    ]
    for own in asked:
        thing = deployment("prefill", prefill=own)
        assert settings_of(thing, PrefillSettings).device == "cuda"
        assert "-worker-cuda:" in container(thing)["image"]
        assert settings_of(deployment("decode", prefill=own), DecodeSettings).device == "auto"


def test_quantities_are_text_however_they_are_written() -> None:
    """Unquoted numbers are refused by servers that apply them themselves."""
    own = {"gpu": {"count": 1}, "resources": {"requests": {"cpu": 8, "memory": 1073741824}}}
    found = container(deployment("prefill", prefill=own))["resources"]
    assert found["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert found["requests"] == {"cpu": "8", "memory": "1073741824"}


def test_a_kind_of_gpu_is_a_label_of_the_node() -> None:
    own = {"gpu": {"count": 1, "product": "H100"}, "nodeSelector": {"zone": "a"}}
    found = pod(deployment("decode", decode=own))["nodeSelector"]
    assert found == {"zone": "a", "nvidia.com/gpu.product": "H100"}


def test_links_are_only_tried_by_ways_that_two_pods_can_have() -> None:
    """shm and cuda_ipc reach within one network namespace; each link would warn."""
    assert settings_of(deployment("decode"), DecodeSettings).transports == "tcp"
    gpu = deployment("decode", decode={"gpu": {"count": 1}})
    assert settings_of(gpu, DecodeSettings).transports == "nccl,tcp"
    said = deployment("decode", decode={"settings": {"transports": "ucx,tcp"}})
    assert settings_of(said, DecodeSettings).transports == "ucx,tcp"


def test_both_families_of_addresses() -> None:
    """`::` is every address of a host, IPv4 alone where there is no other."""
    things = render()
    router = things["Deployment/demo-baton-router"]
    assert settings_of(router, RouterSettings).host == "::"
    for role, known in WORKERS:
        assert settings_of(things[f"Deployment/demo-baton-{role}"], known).host == "::"
    redis = container(things["Deployment/demo-baton-redis"])["args"]
    assert redis[redis.index("--bind") + 1 : redis.index("--bind") + 3] == ["*", "-::*"]


def test_no_container_runs_as_root_or_writes_its_own_files() -> None:
    for thing in pods(render()).values():
        assert pod(thing)["securityContext"]["runAsNonRoot"]
        rights = container(thing)["securityContext"]
        assert rights["readOnlyRootFilesystem"] and rights["capabilities"]["drop"] == ["ALL"]


def test_a_worker_is_ready_when_it_says_so_and_not_when_its_port_is_open() -> None:
    for role in ("prefill", "decode"):
        worker = container(deployment(role))
        assert worker["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "metrics"}
        assert worker["livenessProbe"]["httpGet"] == {"path": "/health", "port": "metrics"}
        assert worker["livenessProbe"]["timeoutSeconds"] == 5


def test_no_service_of_the_cluster_sets_our_variables() -> None:
    for thing in pods(render()).values():
        assert pod(thing)["enableServiceLinks"] is False


def test_graces_follow_from_what_they_allow_for() -> None:
    def grace(thing: dict[str, Any]) -> int:
        return int(pod(thing)["terminationGracePeriodSeconds"])

    assert grace(deployment("decode")) == 30 + 15
    assert grace(deployment("decode", decode={"settings": {"drainS": 119.5}})) == 120 + 15
    assert grace(deployment("router")) == 5 + 600 + 15
    router: dict[str, Any] = {"settings": {"lingerS": 10, "requestTimeoutS": 60}}
    assert grace(deployment("router", router=router)) == 10 + 60 + 15
    router["settings"]["drainS"] = 90
    assert grace(deployment("router", router=router)) == 10 + 90 + 15


@pytest.mark.parametrize("seconds", [0, 0.0, None])
def test_a_time_of_zero_is_zero_and_none_is_the_processes_own(seconds: float | None) -> None:
    thing = deployment("decode", decode={"settings": {"drainS": seconds}})
    told = settings_of(thing, DecodeSettings)
    assert told.drain_s == (30 if seconds is None else 0)
    assert pod(thing)["terminationGracePeriodSeconds"] == told.drain_s + 15
    times = {"lingerS": seconds, "drainS": seconds, "requestTimeoutS": None}
    thing = deployment("router", router={"settings": times})
    router = settings_of(thing, RouterSettings)
    streams = router.request_timeout_s if router.drain_s is None else router.drain_s
    assert pod(thing)["terminationGracePeriodSeconds"] == router.linger_s + streams + 15


def test_a_section_may_have_no_settings_at_all() -> None:
    for role, known in (("router", RouterSettings), *WORKERS):
        settings_of(deployment(role, **{role: {"settings": None}}), known)


def test_what_a_section_says_goes_before_the_one_above_it() -> None:
    things = render(
        pod={"nodeSelector": {"a": "1"}, "podLabels": {"team": "x"}},
        worker={"nodeSelector": {"a": "2"}, "settings": {"drainS": 60}},
        prefill={"nodeSelector": {"b": "3"}, "settings": {"tokenBudget": 4096}},
    )
    selectors = {
        role: pod(things[f"Deployment/demo-baton-{role}"]).get("nodeSelector")
        for role in ("router", "prefill", "decode")
    }
    assert selectors == {
        "router": {"a": "1"},
        "prefill": {"a": "2", "b": "3"},
        "decode": {"a": "2"},
    }
    prefill = settings_of(things["Deployment/demo-baton-prefill"], PrefillSettings)
    assert (prefill.drain_s, prefill.token_budget) == (60, 4096)


def test_null_takes_a_field_away_from_all_pods_or_from_one() -> None:
    everywhere = render(pod={"podSecurityContext": {"runAsUser": None}})
    assert all("runAsUser" not in pod(one)["securityContext"] for one in pods(everywhere).values())
    own = deployment("decode", decode={"podSecurityContext": {"runAsUser": None}})
    assert pod(own)["securityContext"]["runAsGroup"] == 1000
    assert "runAsUser" not in pod(own)["securityContext"]
    assert pod(deployment("prefill"))["securityContext"]["runAsUser"] == 1000


def test_a_probe_may_be_changed_or_replaced_or_left_out() -> None:
    worker = {"startupProbe": {"failureThreshold": 99}, "livenessProbe": {"timeoutSeconds": 9}}
    found = container(deployment("decode", worker=worker))
    assert found["startupProbe"]["httpGet"] == {"path": "/health", "port": "metrics"}
    assert found["livenessProbe"] == {**found["livenessProbe"], "timeoutSeconds": 9}
    instead = {"livenessProbe": {"exec": {"command": ["true"]}}}
    assert "httpGet" not in container(deployment("decode", decode=instead))["livenessProbe"]
    assert "livenessProbe" not in container(deployment("decode", decode={"livenessProbe": None}))


def test_a_node_has_both_kinds_of_worker_in_one_pod_with_all_its_gpus() -> None:
    things = render(layout="node", node={"prefill": 1, "decode": 3, "gpu": {"count": 4}})
    assert not {f"Deployment/demo-baton-{role}" for role in ("prefill", "decode")} & set(things)
    node = container(things["Deployment/demo-baton-node"])
    assert node["args"][:2] == ["controlplane.cli.entry", "workers"]
    assert node["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "--transports" not in node["args"], "within a pod shm and cuda_ipc are best"
    args = [arg.replace("$(POD_NAME)", "pod-1").replace("$(POD_IP)", "::7") for arg in node["args"]]
    with environment_of(node):
        told, _ = load_with_children(
            NodeSettings, args[2:], prog="baton workers", children=(PrefillSettings, DecodeSettings)
        )
    assert (told.prefill, told.decode, told.device, told.worker) == (1, 3, "cuda", "pod-1")
    assert (told.port, told.kv_port, told.metrics_port) == (9300, 9500, 9400)
    assert told.redis_prefix == "ns/demo:"


def test_keys_with_tenants_are_a_secret_that_is_mounted_as_a_folder() -> None:
    thing = deployment("router", router={"keysSecret": {"name": "tenants"}})
    (mount,) = [one for one in container(thing)["volumeMounts"] if one["name"] == "keys"]
    (volume,) = [one for one in pod(thing)["volumes"] if one["name"] == "keys"]
    assert settings_of(thing, RouterSettings).keys_file == Path(mount["mountPath"]) / "keys.json"
    assert "subPath" not in mount, "a file that is mounted alone never changes"
    assert volume["secret"]["secretName"] == "tenants"
