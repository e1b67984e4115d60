"""What an upgrade changes: of pods nothing but what was meant."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.chart import (
    CHART,
    by_name,
    ci_values,
    container,
    deployment,
    objects,
    pods,
    render,
    rendered,
    texts_of,
)


def with_versions(folder: Path, *, chart: str = "0.1.0", app: str = "0.1.0") -> Path:
    copy = folder / f"{chart}-{app}" / "baton"
    shutil.copytree(CHART, copy)
    text = (copy / "Chart.yaml").read_text()
    text = re.sub(r"^version: .*", f"version: {chart}", text, flags=re.M)
    (copy / "Chart.yaml").write_text(
        re.sub(r"^appVersion: .*", f'appVersion: "{app}"', text, flags=re.M)
    )
    return copy


def templates(chart: Path, values: dict[str, Any]) -> dict[str, Any]:
    things = pods(by_name(objects(values, chart=chart)))
    return {name: thing["spec"]["template"] for name, thing in things.items() if "test" not in name}


def test_two_renders_are_equal_byte_for_byte() -> None:
    for case in ("simulation", "scaled", "pools", "ways-out"):
        values = ci_values()[case]
        first = rendered(values)
        texts_of.cache_clear()
        assert rendered(values) == first


def test_nothing_is_looked_up_or_drawn_and_no_hook_must_run() -> None:
    text = "".join(file.read_text() for file in (CHART / "templates").rglob("*") if file.is_file())
    for word in ("lookup ", "randAlpha", "randNumeric", "randAscii", "genCA", "uuidv4", " now "):
        assert word not in text
    for case in ("simulation", "scaled", "entry", "pools"):
        for thing in objects(ci_values()[case]):
            hook = thing["metadata"].get("annotations", {}).get("helm.sh/hook", "test")
            assert hook == "test"


@pytest.mark.parametrize("case", ["simulation", "pools", "scaled", "redis-password"])
def test_a_new_chart_version_restarts_no_pod(case: str, tmp_path: Path) -> None:
    values = ci_values()[case]
    old, new = with_versions(tmp_path), with_versions(tmp_path, chart="0.2.0")
    assert templates(old, values) == templates(new, values)


def test_a_new_image_restarts_all_but_redis(tmp_path: Path) -> None:
    old = templates(with_versions(tmp_path), {})
    new = templates(with_versions(tmp_path, app="0.2.0"), {})
    changed = {name.rpartition("-")[2] for name in old if old[name] != new[name]}
    assert changed == {"router", "prefill", "decode"}
    for name in old:
        text = str(new[name]).replace(":0.2.0", ":0.1.0")
        assert text == str(old[name]), f"{name}: more than the image"


def test_pods_carry_the_labels_that_select_them_and_no_others() -> None:
    for thing in pods(render(commonLabels={"team": "x"})).values():
        metadata = thing["spec"]["template"]["metadata"]
        assert set(metadata) == {"labels"}
        names = {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }
        assert set(metadata["labels"]) == names
        assert thing["metadata"]["labels"]["team"] == "x"


def test_a_changed_alias_restarts_no_router() -> None:
    """Routers read the file again."""
    told = [
        deployment("router", router={"aliases": {"prod": {"a": w, "b": 100 - w}}}) for w in (0, 99)
    ]
    assert told[0] == told[1]
    found = render(router={"aliases": {"prod": {"a": 95, "b": 5}}})
    assert found["ConfigMap/demo-baton-aliases"]["data"] == {
        "aliases.json": '{"prod":{"a":95,"b":5}}'
    }
    router = container(found["Deployment/demo-baton-router"])
    (mount,) = [one for one in router["volumeMounts"] if one["name"] == "aliases"]
    assert "subPath" not in mount
    args = router["args"]
    assert args[args.index("--aliases-file") + 1] == f"{mount['mountPath']}/aliases.json"


def test_replicas_are_left_out_where_somebody_else_says_them() -> None:
    asked: list[dict[str, Any]] = [
        {"decode": {"replicas": None}},
        {"decode": {"autoscaling": {"enabled": True, "prometheus": "http://p:9090"}}},
        {"autoscaler": {"enabled": True}},
    ]
    for values in asked:
        assert "replicas" not in deployment("decode", **values)["spec"]
    for values in ({"router": {"replicas": None}}, {"router": {"autoscaling": {"enabled": True}}}):
        assert "replicas" not in deployment("router", **values)["spec"]
    assert deployment("decode", decode={"replicas": 4})["spec"]["replicas"] == 4
    assert deployment("prefill", prefill={"replicas": 0})["spec"]["replicas"] == 0


def test_no_rollout_waits_for_a_gpu_that_is_not_there() -> None:
    def rollout(**own: Any) -> tuple[Any, Any]:
        found = deployment("decode", decode=own)["spec"]["strategy"]["rollingUpdate"]
        return found["maxSurge"], found["maxUnavailable"]

    gpu = {"count": 1}
    assert rollout() == (1, 0)
    assert rollout(replicas=4) == (1, 0)
    assert rollout(gpu=gpu) == (1, 0), "the only one is not taken away"
    assert rollout(gpu=gpu, replicas=2) == (0, 1)
    assert rollout(gpu=gpu, replicas=None) == (0, 1)
    assert rollout(gpu=gpu, replicas=8, rollout={"maxSurge": "25%", "maxUnavailable": 0}) == (
        "25%",
        0,
    )


def test_a_load_from_a_slow_disk_is_no_failed_rollout() -> None:
    spec = deployment("decode", decode={"rollout": {"minReadySeconds": 20}})["spec"]
    assert (spec["progressDeadlineSeconds"], spec["minReadySeconds"]) == (3600, 20)
