"""The workers of a node: where each computes and listens, and their metrics as one."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.local.node_status import merged
from controlplane.local.workers import own_flags
from controlplane.local.workers_settings import NodeSettings, load_node
from protocol.errors import SettingsError
from protocol.process.metrics import WorkerMetrics

NODE = NodeSettings(worker="node-a", port=9400, kv_port=9500, advertise="10.0.0.7", host="0.0.0.0")


def test_each_worker_has_a_gpu_and_ports_of_its_own() -> None:
    names = ["prefill-0", "prefill-1", "decode-0"]
    flags = [own_flags(NODE, i, name, num_gpus=4) for i, name in enumerate(names)]
    assert [one["device"] for one in flags] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [one["port"] for one in flags] == ["9400", "9401", "9402"]
    assert [one["kv-port"] for one in flags] == ["9500", "9504", "9508"]
    assert [one["worker"] for one in flags] == [f"node-a-{name}" for name in names]
    assert {one["advertise"] for one in flags} == {"10.0.0.7"}


def test_workers_share_gpus_by_turns_where_there_are_fewer() -> None:
    flags = [own_flags(NODE, i, f"decode-{i}", num_gpus=2) for i in range(4)]
    assert [one["device"] for one in flags] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_without_a_gpu_the_device_is_as_it_was_told() -> None:
    assert own_flags(NODE, 0, "decode-0", num_gpus=0)["device"] == "auto"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prefill", "0", "--decode", "0"), "prefill and decode are both 0"),
        (("--port", "65535"), "port: 65535: there are not so many ports above it"),
        (("--model", "/nowhere"), "/nowhere: no such folder"),
        (("--router-processes", "2"), "unknown setting: --router-processes"),
    ],
)
def test_what_a_node_cannot_be_told_is_refused(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(Exception, match=says) as refused:
        load_node(flags)
    assert "\n" not in str(refused.value)


def test_flags_of_workers_reach_each_of_them() -> None:
    flags = load_node(["--token-budget", "64", "--device", "cpu"])
    assert flags.child_env == {"BATON_TOKEN_BUDGET": "64"}
    assert flags.settings.device == "cpu"


def test_a_device_by_number_is_not_for_several_workers() -> None:
    with pytest.raises(SettingsError, match="device: 'cuda:1'"):
        load_node(["--device", "cuda:1"])


def test_metrics_of_all_workers_are_one_text_with_each_family_once() -> None:
    from prometheus_client import generate_latest

    metrics = {name: WorkerMetrics() for name in ("prefill-0", "decode-0")}
    metrics["decode-0"].running.set(3)
    text = merged({name: generate_latest(one.registry).decode() for name, one in metrics.items()})
    families = list(text_string_to_metric_families(text + "\n"))
    assert len({family.name for family in families}) == len(families)
    by_name = {family.name: family for family in families}
    running = {one.labels["worker"]: one.value for one in by_name["baton_worker_running"].samples}
    assert running == {"prefill-0": 0.0, "decode-0": 3.0}
