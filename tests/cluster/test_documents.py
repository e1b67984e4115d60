"""The commands that the documents give, as they stand there."""

import re
import shlex
from typing import Any

import helm_python as helm
import pytest
import yaml
from support.chart import LOADER
from support.kube.control_plane import built_folder
from support.kube.installed import Installed
from support.source_tree import ROOT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(built_folder() is None, reason="no control plane: make test-cluster"),
]
PARTS = ("router", "prefill", "decode", "redis")
BUDGETS = {"policy/v1": "policy/v1beta1"}
"""What the manifests say, which are for a newer server, and what this one has of it."""


@pytest.mark.parametrize("document", ["README.md", "docs/kubernetes.md", "deploy/kind.md"])
def test_helm_installs_as_it_says(document: str, release: Installed) -> None:
    _helm(release, _only_line(document, "helm install "))
    release.wait_rolled_out(*PARTS)


def test_helm_upgrades_as_the_walk_through_says(release: Installed) -> None:
    _helm(release, _only_line("deploy/kind.md", "helm install "))
    _helm(release, _only_line("deploy/kind.md", "helm upgrade "))
    release.wait_rolled_out(*PARTS)
    assert release.num_replicas("prefill") == 2


def test_plain_manifests_are_applied_as_it_says(release: Installed) -> None:
    release.name = "baton"
    file = _only_line("README.md", "kubectl apply ").split()[-1]
    for thing in yaml.load_all((ROOT / file).read_text(), LOADER):
        thing["apiVersion"] = BUDGETS.get(thing["apiVersion"], thing["apiVersion"])
        path = release.api.path_of(thing, release.namespace)
        release.api.apply(path, thing, manager="kubectl")
    release.wait_rolled_out(*PARTS)


def _only_line(document: str, begins: str) -> str:
    (line,) = re.findall(f"^{begins}.*$", (ROOT / document).read_text(), flags=re.M)
    return str(line)


def _helm(release: Installed, line: str) -> None:
    """`helm install` or `helm upgrade`. Raises AssertionError for a flag that is not known here."""
    _, verb, name, chart, *flags = shlex.split(line, comments=True)
    values: dict[str, Any] = {}
    reuses = False
    while flags:
        match flags.pop(0):
            case "--set":
                values |= helm.parse_set_string(flags.pop(0))
            case "--timeout":
                flags.pop(0)
            case "--reuse-values":
                reuses = True
            case flag:
                assert flag == "--wait", flag
    release.name = name
    if verb == "install":
        release.config.install(str(ROOT / chart), name, values)
    else:
        release.config.upgrade(str(ROOT / chart), name, values, reuse_values=reuses)
