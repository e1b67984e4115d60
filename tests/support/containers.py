"""The images of the Dockerfile, built from a Debian of debootstrap and run by podman with runc.

Nothing comes from a registry of images: the base is Debian's packages, Python's come by the locks.
Needs root and what CONTAINER_TOOLS of the Makefile names. What is built stays in the machine's store
of images under `localhost/baton-test/`, as a cache.
"""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.source_tree import ROOT

PREFIX = "localhost/baton-test"
SUITE = "bookworm"
BASE = f"{PREFIX}/base:{SUITE}"
BASE_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
BUILD_S, RUN_S = 1500.0, 240.0
MIB = 1 << 20
LOCAL_TORCH = Path("/opt/wheels")
"""Where this folder is, torch for CPUs is taken from it: PyTorch's index is not everywhere."""
HOST_FILES = ("/etc/ssl/certs", "/etc/resolv.conf", "/etc/pip.conf")
LIMITS = """[containers]
default_ulimits=["nofile=20000:20000","nproc=20000:20000"]
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
"""
"""Below a virtual machine's hard limits, without systemd, and by the runtime that takes any kind of
cgroups."""


def missing_tools() -> list[str]:
    tools = ("buildah", "podman", "runc", "iptables", "catatonit", "debootstrap")
    return [tool for tool in tools if shutil.which(tool) is None]


@dataclass(frozen=True, slots=True)
class Containers:
    """Commands of buildah and podman, with settings of their own."""

    settings: Path

    def call(self, *command: str | Path, within_s: float = RUN_S) -> str:
        """What it wrote to its standard output; an AssertionError with all else where it failed."""
        environment = {**os.environ, "CONTAINERS_CONF": str(self.settings)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=within_s
        )
        assert not done.returncode, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def build_base(self) -> None:
        """Once a machine: some minutes."""
        if self.has_image(BASE):
            return
        with tempfile.TemporaryDirectory(prefix="baton-base-") as folder:
            tree = Path(folder) / "tree"
            only = ("--variant=minbase", f"--include={BASE_PACKAGES}")
            self.call("debootstrap", *only, SUITE, tree, within_s=BUILD_S)
            self.call("tar", "-C", tree, "-cf", Path(folder) / "base.tar", ".")
            (Path(folder) / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
            shutil.rmtree(tree)
            self._build(Path(folder), "--tag", BASE)

    def build(self, target: str, *, context: Path = ROOT, tag: str = "dev") -> str:
        """The image of one target; its name."""
        name = f"{PREFIX}/baton-{target}:{tag}"
        links = LOCAL_TORCH if LOCAL_TORCH.is_dir() else None
        arguments = [f"BASE_IMAGE={BASE}", f"REDIS_BASE_IMAGE={BASE}", f"VERSION={tag}"]
        arguments += [f"TORCH_LINKS={links}"] if links else []
        mounts = [path for path in HOST_FILES if Path(path).exists()]
        mounts += [str(links)] if links else []
        self._build(
            context,
            *("--target", target, "--tag", name, "--pull-never", "--layers", "--network", "host"),
            *(word for each in arguments for word in ("--build-arg", each)),
            *(word for path in mounts for word in ("--volume", f"{path}:{path}:ro")),
        )
        return name

    def _build(self, context: Path, *options: str) -> None:
        way = ("--isolation", "chroot", "--format", "docker")
        self.call("buildah", "bud", *way, *options, context, within_s=BUILD_S)

    def has_image(self, name: str) -> bool:
        return bool(self.call("podman", "images", "--quiet", name).strip())

    def inspect(self, image: str) -> dict[str, Any]:
        (found,) = json.loads(self.call("podman", "image", "inspect", image))
        return dict(found)

    def run(self, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """What a container said, that has no network, writes below /tmp alone, and is gone then."""
        closed = ("--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777")
        own = ("--no-healthcheck", *closed, *options)
        return self.call("podman", "run", "--rm", *own, image, *command)

    def layers(self, image: str) -> dict[str, int]:
        """The sizes of its layers as a registry is sent them, compressed, by their digests."""
        digests = self.inspect(image)["RootFS"]["Layers"]
        with tempfile.TemporaryDirectory(prefix="baton-image-") as folder:
            saved = Path(folder) / "image.tar"
            self.call("podman", "save", "--format", "docker-archive", "--output", saved, image)
            with tarfile.open(saved) as archive:
                (manifest,) = json.load(_member(archive, "manifest.json"))
                named = zip(digests, manifest["Layers"], strict=True)
                return {digest: _compressed(_member(archive, name)) for digest, name in named}


def _member(archive: tarfile.TarFile, name: str) -> Any:
    found = archive.extractfile(name)
    assert found is not None, name
    return found


def _compressed(stream: Any) -> int:
    """Bytes after zlib's fastest: what engines push with, or worse."""
    press = zlib.compressobj(level=1)
    parts = iter(lambda: stream.read(MIB), b"")
    return sum(len(press.compress(part)) for part in parts) + len(press.flush())


@contextmanager
def containers() -> Iterator[Containers]:
    with tempfile.TemporaryDirectory(prefix="baton-containers-") as folder:
        settings = Path(folder) / "containers.conf"
        settings.write_text(LIMITS)
        yield Containers(settings)
