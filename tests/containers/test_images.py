"""The images: what they hold, what a change of ours sends again, and that they run for anybody."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import BASE, Containers, containers, missing_tools
from support.source_tree import ROOT

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing_tools()), reason="no buildah, podman, runc or debootstrap"),
]
MB = 10**6
ROUTER_MB, CHANGE_MB = 220, 5
STRANGERS = ("1000:0", "1234567890:0", "1000:1000")
LOADED = """
import json, os, shutil
from router.prefix.native.library import kernels as prefix
from router.fast_path.native.library import kernels as fast_path
from router.placement.kernel import KERNELS as placement
from kvtransfer.native.library import kernels as copies
found = [prefix()._name, fast_path()._name, placement.load()._name, copies()._name]
compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
print(json.dumps({"kernels": found, "compiler": compiler, "uid": os.getuid()}))
"""
COMPUTED = """
import json, torch
from engine.ops.choose import choose_ops
from engine.ops.cpu.build import load
ops = choose_ops(dtype=torch.float32)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(json.dumps({"ops": type(ops).__name__, "kernels": [load()._name], "openmp": len(maps)}))
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Containers]:
    with containers() as engine:
        engine.build_base()
        yield engine


@pytest.fixture(scope="module")
def router(engine: Containers) -> str:
    return engine.build("router")


@pytest.fixture(scope="module")
def worker(engine: Containers) -> str:
    return engine.build("worker-cpu")


def test_the_router_is_small_and_has_no_torch(engine: Containers, router: str) -> None:
    added = engine.inspect(router)["Size"] - engine.inspect(BASE)["Size"]
    assert added <= ROUTER_MB * MB
    has = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert engine.run(router, "-c", has, options=PYTHON).strip() == "None"


PYTHON = ("--entrypoint", "python")


@pytest.mark.parametrize("user", STRANGERS)
@pytest.mark.parametrize("image", ["router", "worker"])
def test_kernels_load_without_a_compiler_for_any_user_with_nothing_to_write_and_no_network(
    engine: Containers, request: pytest.FixtureRequest, image: str, user: str
) -> None:
    options = ("--user", user, "--cap-drop", "all", *PYTHON)
    name = request.getfixturevalue(image)
    found = json.loads(engine.run(name, "-c", LOADED, options=options).splitlines()[-1])
    assert found["compiler"] is None
    assert found["uid"] == int(user.partition(":")[0])
    assert {str(Path(each).parent) for each in found["kernels"]} == {"/opt/baton/kernels"}


def test_a_worker_computes_with_them_and_with_the_openmp_of_torch(
    engine: Containers, worker: str
) -> None:
    options = ("--user", "1234567890:0", *PYTHON)
    found = json.loads(engine.run(worker, "-c", COMPUTED, options=options).splitlines()[-1])
    assert found["ops"] == "NativeOps"
    assert found["kernels"][0].startswith("/opt/baton/kernels/")
    assert found["openmp"] == 1


def test_a_change_of_ours_sends_five_megabytes_at_most(
    engine: Containers, router: str, tmp_path: Path
) -> None:
    """A comment in Python and in C: everything above the dependencies is built anew."""
    changed = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "results")
    shutil.copytree(ROOT, changed, ignore=ignored, symlinks=True)
    shutil.copy(ROOT / ".dockerignore", changed)
    with (changed / "router" / "settings.py").open("a") as source:
        source.write("# changed\n")
    with (changed / "router" / "placement" / "options.c").open("a") as source:
        source.write("/* changed */\n")
    before = engine.layers(router)
    after = engine.layers(engine.build("router", context=changed, tag="changed"))
    new = {digest: size for digest, size in after.items() if digest not in before}
    assert new, "nothing was built"
    assert sum(new.values()) <= CHANGE_MB * MB, new
    assert len(new) <= 2, "the kernels, and what is written in Python"


def test_an_init_is_process_1_and_answers_signals(engine: Containers, router: str) -> None:
    assert engine.inspect(router)["Config"]["Entrypoint"][0] == "tini"
    told = engine.run(router, "tini", "--version", options=("--entrypoint", ""))
    assert told.startswith("tini version")


def test_what_an_image_is_stands_on_it(engine: Containers, router: str) -> None:
    config = engine.inspect(router)
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert config["HealthCheck" if "HealthCheck" in config else "Healthcheck"]["Test"]
    assert config["User"] == "1000:0"


@pytest.mark.parametrize("command", [("--version",), ("doctor", "--help")])
def test_the_command_is_there(engine: Containers, worker: str, command: tuple[str, ...]) -> None:
    told = engine.run(worker, "baton", *command, options=("--entrypoint", ""))
    assert "baton" in told
