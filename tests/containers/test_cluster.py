"""The chart's simulation values played by podman: a request prefilled in one container and decoded
in another, its KV over TCP between them; and every process ends when it is asked to."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from support.chart import by_name, ci_values, objects
from support.containers import Containers, containers, missing_tools
from support.eventually import eventually
from support.played import Network, playable

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing_tools()), reason="no buildah, podman, runc or debootstrap"),
]
TARGETS = {"redis": "redis", "router": "router", "worker": "worker-cpu"}
"""By the names of the chart's containers."""
ROLES = ("redis", "prefill", "decode", "router")
READY_S = 180.0
APART = {"router": {"settings": {"localPrefill": "never", "lingerS": 1}}}
"""On the values: a short prompt is prefilled apart too, and the end does not take long."""


class Played:
    """The release, one pod a role."""

    def __init__(self, engine: Containers, folder: Path) -> None:
        self.engine = engine
        self.network = Network()
        self.addresses = {role: self.network.give_address() for role in ROLES}
        self._files = {role: folder / f"{role}.yaml" for role in ROLES}

    def start(self, stack: ExitStack) -> None:
        images = {name: self.engine.build(target) for name, target in TARGETS.items()}
        things = by_name(objects({**ci_values()["simulation"], **APART}))
        call = self.engine.call
        call("podman", "network", "create", "--subnet", self.network.subnet, self.network.name)
        stack.callback(call, "podman", "network", "rm", "--force", self.network.name)
        hosts = {"demo-baton-redis": self.addresses["redis"]}
        for role, file in self._files.items():
            address = self.addresses[role]
            thing = things[f"Deployment/demo-baton-{role}"]
            file.write_text(playable(thing, address=address, images=images, hosts=hosts))
            where = ("--network", self.network.name, "--ip", address)
            pod = f"demo-baton-{role}-pod-0"
            stack.callback(call, "podman", "pod", "rm", "--force", "--ignore", pod)
            call("podman", "kube", "play", *where, file)

    def url(self, role: str, port: int, path: str) -> str:
        return f"http://{self.addresses[role]}:{port}{path}"

    def containers(self, role: str) -> list[str]:
        names = self.engine.call("podman", "ps", "--all", "--format", "{{.Names}}").split()
        return [name for name in names if name.startswith(f"demo-baton-{role}-pod-0-")]

    def logs(self) -> str:
        every = [name for role in ROLES for name in self.containers(role)]
        return "\n".join(f"{name}: {self.engine.call('podman', 'logs', name)}" for name in every)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with containers() as engine, ExitStack() as stack:
        engine.build_base()
        played = Played(engine, tmp_path_factory.mktemp("manifests"))
        played.start(stack)
        yield played


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_request_is_prefilled_and_decoded_in_different_containers(played: Played) -> None:
    ready = played.url("router", 8000, "/ready")
    try:
        eventually(lambda: answers(ready), READY_S, "the router is ready")
    except AssertionError as error:
        raise AssertionError(played.logs()) from error
    text = "Once upon a time there was a small red fox who lived at the edge of a wood. " * 8
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 12}
    answer = httpx.post(played.url("router", 8000, "/v1/chat/completions"), json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["x-baton-route"].startswith("demo-baton-prefill>demo-baton-decode;")
    record = played.url("router", 8000, f"/requests/{answer.headers['x-request-id']}")
    (trace,) = httpx.get(record, timeout=10).json()["traces"]
    assert trace["bytes_moved"] > 0, trace
    metrics = httpx.get(played.url("decode", 9400, "/metrics"), timeout=10).text
    moved = [line for line in metrics.splitlines() if line.startswith("baton_worker_kv_moved_byt")]
    assert any('transport="tcp"' in line and not line.endswith(" 0.0") for line in moved), moved


def test_every_process_ends_with_0_when_it_is_asked_to(played: Played) -> None:
    for role in ("router", "decode", "prefill", "redis"):
        every = played.containers(role)
        assert every
        for name in every:
            played.engine.call("podman", "stop", "--time", "60", name)
            state = json.loads(played.engine.call("podman", "inspect", name))[0]["State"]
            assert state["ExitCode"] == 0, (name, played.engine.call("podman", "logs", name))
