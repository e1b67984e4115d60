"""What lies in deploy/ is what the chart, the images and the settings are."""

import re
from typing import Any

import pytest
import yaml
from support.source_tree import ROOT

from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.process.settings import CommandSettings, WorkerSettings, load
from router.settings import RouterSettings
from tools.manifests import VALUES, manifest, path_of

COMPOSE = ROOT / "deploy" / "docker-compose.yaml"
SETTINGS: dict[str, type[CommandSettings]] = {
    "router": RouterSettings,
    "prefill_worker": PrefillSettings,
    "decode_worker": DecodeSettings,
}


@pytest.mark.parametrize("values", VALUES)
def test_plain_manifests_are_the_chart_rendered(values: str) -> None:
    assert path_of(values).read_text() == manifest(values), "make manifests"


@pytest.mark.parametrize("values", VALUES)
def test_plain_manifests_need_no_helm(values: str) -> None:
    things = [thing for thing in yaml.safe_load_all(path_of(values).read_text()) if thing]
    assert {"Deployment", "Service"} <= {thing["kind"] for thing in things}
    assert not [thing for thing in things if "helm.sh/hook" in str(thing)]


def services() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def test_compose_runs_the_images_that_are_made() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    targets = re.findall(r" AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in services().items():
        image = re.fullmatch(r"\$\{IMAGE:-baton\}-(.+):\$\{TAG:-(.+)\}", service["image"])
        assert image, name
        assert image[1] in targets
        assert image[2] == version[1]


def test_compose_says_what_the_processes_understand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, service in services().items():
        if name == "redis":
            continue
        module, *flags = service["command"]
        with monkeypatch.context() as patch:
            for variable, value in service["environment"].items():
                told = re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
                patch.setenv(variable, told.replace("/models/mounted", str(ROOT / "models/tiny")))
            settings = load(SETTINGS[module], flags)
        assert isinstance(settings, RouterSettings | WorkerSettings)
        assert settings.redis == "redis://redis:6379/0"
        if isinstance(settings, WorkerSettings):
            assert settings.worker == settings.advertise == service["hostname"] == name


def test_what_compose_runs_may_do_no_more_than_it_must() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["tmpfs"] == ["/tmp"]
