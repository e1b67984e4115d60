"""What the chart renders, by Helm 4's own code."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.process.settings import load
from router.settings import RouterSettings

ROOT = Path(__file__).resolve().parents[2]
CHART, DOCKERFILE = ROOT / "charts" / "baton", ROOT / "Dockerfile"
Object = dict[str, Any]


def render(**values: Any) -> dict[str, Object]:
    """Objects by `Kind/name`."""
    texts = helm.Chart.load(str(CHART)).render(values, name="demo", namespace="ns")
    found: dict[str, Object] = {}
    for path, text in texts.items():
        if path.endswith(".yaml"):
            for thing in filter(None, yaml.safe_load_all(text)):
                name = f"{thing['kind']}/{thing['metadata']['name']}"
                assert name not in found
                found[name] = thing
    return found


def container(thing: Object) -> Object:
    (only,) = thing["spec"]["template"]["spec"]["containers"]
    return dict(only)


def flag(args: Sequence[str], name: str) -> str:
    return args[args.index(name) + 1]


def test_the_chart_has_nothing_that_helm_warns_of() -> None:
    found = helm.lint(str(CHART), strict=True)
    assert [message for message in found["messages"] if message["severity"] > 1] == []
    assert found["errors"] == []


def test_it_installs_as_it_is_one_of_each() -> None:
    deployments = {name for name in render() if name.startswith("Deployment/")}
    roles = ("router", "prefill", "decode", "redis")
    assert deployments == {f"Deployment/demo-baton-{role}" for role in roles}


def test_what_the_image_writes_lies_on_a_volume_that_any_user_can_write() -> None:
    """Compiled kernels, of C and of Triton: the root file system is read-only."""
    named = re.findall(r"\b(HOME|XDG_CACHE_HOME)=(\S+)", DOCKERFILE.read_text())
    assert {name for name, _ in named} == {"HOME", "XDG_CACHE_HOME"}
    for role in ("router", "prefill", "decode"):
        thing = render()[f"Deployment/demo-baton-{role}"]
        volumes = {one["name"]: one for one in thing["spec"]["template"]["spec"]["volumes"]}
        mounts = container(thing)["volumeMounts"]
        for _, folder in named:
            (mount,) = (one for one in mounts if Path(folder).is_relative_to(one["mountPath"]))
            assert volumes[mount["name"]]["emptyDir"] == {} and not mount.get("readOnly")


def test_the_pools_are_sized_apart() -> None:
    found = render(prefill={"replicas": 4})
    assert found["Deployment/demo-baton-prefill"]["spec"]["replicas"] == 4
    assert found["Deployment/demo-baton-decode"]["spec"]["replicas"] == 1


def test_router_and_workers_serve_the_same_length() -> None:
    for name in ("router", "prefill", "decode"):
        thing = f"Deployment/demo-baton-{name}"
        args = container(render(model={"maxModelLen": 131_072})[thing])["args"]
        assert flag(args, "--max-model-len") == "131072"
        assert "--max-model-len" not in container(render()[thing])["args"]


def test_a_pool_of_workers_gets_gpus() -> None:
    found = render(prefill={"resources": {"limits": {"nvidia.com/gpu": "1"}}})
    limits = container(found["Deployment/demo-baton-prefill"])["resources"]["limits"]
    assert limits == {"memory": "4Gi", "nvidia.com/gpu": "1"}


def test_the_router_gets_settings_that_it_knows() -> None:
    module, *args = container(render()["Deployment/demo-baton-router"])["args"]
    settings = load(RouterSettings, args)
    assert module == "router"
    assert (settings.host, settings.redis) == ("0.0.0.0", "redis://demo-baton-redis:6379/0")


def test_keys_with_tenants_are_a_secret_that_is_mounted_as_a_folder() -> None:
    thing = render(router={"keysSecret": {"name": "tenants"}})["Deployment/demo-baton-router"]
    _, *args = container(thing)["args"]
    (mount,) = [m for m in container(thing)["volumeMounts"] if m["name"] == "keys"]
    (volume,) = [v for v in thing["spec"]["template"]["spec"]["volumes"] if v["name"] == "keys"]
    assert load(RouterSettings, args).keys_file == Path(mount["mountPath"]) / "keys.json"
    assert "subPath" not in mount, "a file that is mounted alone never changes"
    assert volume["secret"]["secretName"] == "tenants"


def test_a_router_has_as_many_processes_as_the_values_say() -> None:
    _, *args = container(render(router={"processes": 3})["Deployment/demo-baton-router"])["args"]
    assert load(RouterSettings, args).processes == 3


@pytest.mark.parametrize(
    ("role", "known"), [("prefill", PrefillSettings), ("decode", DecodeSettings)]
)
def test_the_workers_get_settings_that_they_know(
    role: str, known: type[PrefillSettings | DecodeSettings]
) -> None:
    found = render(**{role: {"kvBlocks": 99}})[f"Deployment/demo-baton-{role}"]
    module, *args = container(found)["args"]
    settings = load(known, [arg.replace("$(POD_NAME)", "pod-1") for arg in args])
    assert module == f"{role}_worker"
    assert (settings.worker, settings.host, settings.kv_blocks) == ("pod-1", "0.0.0.0", 99)


def test_the_workers_move_kv_as_the_values_say() -> None:
    values = {"transports": "tcp", "allowFallback": False, "helpCopy": "never"}
    values |= {"tcpLanes": 4, "spinUs": 50}
    found = render(transfer=values)
    for role, known in (("prefill", PrefillSettings), ("decode", DecodeSettings)):
        _, *args = container(found[f"Deployment/demo-baton-{role}"])["args"]
        worker = load(known, [arg.replace("$(POD_NAME)", "pod-1") for arg in args])
        assert (worker.transports, worker.allow_fallback) == ("tcp", False)
        assert (worker.kv_help_copy, worker.tcp_lanes, worker.kv_spin_us) == ("never", 4, 50)


def test_an_external_redis_replaces_ours() -> None:
    url = "redis://elsewhere:6379/3"
    found = render(redis={"enabled": False}, externalRedis={"url": url})
    assert not any("redis" in name for name in found)
    for role in ("router", "prefill", "decode"):
        assert flag(container(found[f"Deployment/demo-baton-{role}"])["args"], "--redis") == url


def test_no_redis_at_all_is_refused() -> None:
    with pytest.raises(helm.HelmError, match=r"externalRedis\.url is needed"):
        render(redis={"enabled": False})


@pytest.mark.parametrize(
    "values",
    [
        {"prefill": {"replicas": "two"}},
        {"decode": {"replicas": 0}},
        {"model": {"dtype": "int3"}},
        {"no": {"such": "value"}},
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        render(**values)


def test_every_service_and_policy_selects_pods_that_exist() -> None:
    found = render()
    pods = [
        thing["spec"]["template"]["metadata"]["labels"]
        for name, thing in found.items()
        if name.startswith("Deployment/")
    ]
    selectors = [t["spec"]["selector"] for n, t in found.items() if n.startswith("Service/")]
    selectors += [
        thing["spec"]["podSelector"]["matchLabels"]
        for name, thing in found.items()
        if name.startswith("NetworkPolicy/")
    ]
    assert len(selectors) == 5
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods)


def test_no_container_runs_as_root_or_writes_its_own_files() -> None:
    for name, thing in render().items():
        if name.startswith("Deployment/"):
            assert thing["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]
            assert container(thing)["securityContext"]["readOnlyRootFilesystem"]


def test_a_worker_is_ready_when_it_says_so_and_not_when_its_port_is_open() -> None:
    for role in ("prefill", "decode"):
        worker = container(render()[f"Deployment/demo-baton-{role}"])
        assert worker["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "metrics"}
        assert worker["livenessProbe"]["httpGet"] == {"path": "/health", "port": "metrics"}
        assert flag(worker["args"], "--metrics-port") == "9400"


def test_no_service_of_the_cluster_sets_our_variables() -> None:
    for name, thing in render().items():
        if name.startswith("Deployment/"):
            assert thing["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_a_pod_outlives_its_drain() -> None:
    pod = render(drainSeconds=120)["Deployment/demo-baton-decode"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 120
