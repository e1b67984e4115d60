"""Clients as people have them, unmodified, each in an environment of its own, against one cluster.

A client is a script that ends with 0 when it got what it asked for. Those whose environment is not
there are skipped: `make test-clients` makes them all.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import TINY, Cluster

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("CLIENTS_VENV", HERE.parents[1] / ".venv-clients")).absolute()
PYTHON = sorted(path.stem for path in (HERE / "environments").glob("*.txt"))
LIMIT_S = 280.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(prefill=1, decode=1) as up:
        yield up


def run(cluster: Cluster, *command: str | Path, folder: Path | None = None) -> None:
    """The client with the router's URL and the model's name and directory."""
    done = subprocess.run(
        [*map(str, command), cluster.base_url, cluster.model, str(TINY)],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


def test_openai_for_python(cluster: Cluster) -> None:
    run(cluster, sys.executable, HERE / "openai_python.py")


@pytest.mark.long
@pytest.mark.parametrize("client", PYTHON)
def test_a_client_for_python(cluster: Cluster, client: str) -> None:
    python = ENVIRONMENTS / client / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{client} is not installed: make test-clients")
    run(cluster, python, HERE / f"{client}_python.py")


@pytest.mark.long
@pytest.mark.parametrize("client", ["openai_js", "vercel_ai"])
def test_a_client_for_javascript(cluster: Cluster, client: str, tmp_path: Path) -> None:
    modules = ENVIRONMENTS / "js" / "node_modules"
    if not modules.exists():
        pytest.skip(f"{client} is not installed: make test-clients")
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(HERE / f"{client}.mjs", tmp_path)
    run(cluster, "node", f"{client}.mjs", folder=tmp_path)


def test_javas_default_client(cluster: Cluster) -> None:
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("there is no Java (11 or later)")
    run(cluster, "java", HERE / "DefaultClient.java")


def test_curl_that_offers_http_2(cluster: Cluster) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    body = f'{{"model": "{cluster.model}", "prompt": "Hi", "max_tokens": 5}}'
    asked = ("--http2", "-sS", "--fail-with-body", "-H", "content-type: application/json")
    url = f"{cluster.base_url}/v1/completions"
    done = subprocess.run(
        ["curl", *asked, "-d", body, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and '"text_completion"' in done.stdout, done
