"""What stands for an image: a tree of sources in the place of what the Dockerfile installs.

Environment and entry point are read from the Dockerfile, so a pod has what the image would give it
and nothing of ours; Python and its packages are this environment's.
"""

import compileall
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.process.kernels.targets import targets_here
from protocol.process.own_folder import cache_folder
from tools import prebuild

ROOT = Path(__file__).parents[3]
PACKAGES = (
    *("controlplane", "decode_worker", "engine", "kvtransfer", "prefill_worker"),
    *("protocol", "router", "worker"),
)
SOURCE = "/opt/baton/app"
KERNELS = "/opt/baton/kernels"
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True, slots=True)
class Image:
    env: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    source: Path
    """A checkout, or what of it an image has: its packages and `models/tiny`."""
    kernels: Path | None = None
    """Folder of kernels built ahead; None: each pod builds its own."""
    more_env: Mapping[str, str] = field(default_factory=dict)
    """What a test adds, as a Dockerfile would."""

    def environment(self) -> dict[str, str]:
        path = SOURCE  # a pod has nothing of ours but its image
        return {**self.env, "PYTHONPATH": path, **self.more_env}

    def mounts(self) -> dict[str, Path]:
        """Folders of this machine by the place where the image has them, to be read only."""
        venv = Path(sys.prefix)
        python = Path(sys.executable).resolve().parents[1]
        return {
            "/opt/venv": venv.resolve(),
            str(python): python,
            SOURCE: self.source,
            "/opt/baton/models/tiny": self.source / "models" / "tiny",
            **({KERNELS: self.kernels} if self.kernels else {}),
        }


@dataclass(slots=True)
class _Stage:
    env: dict[str, str]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def image_of(target: str = "", *, source: Path = ROOT) -> Image:
    """What the Dockerfile's stage of that name, or its last one, says."""
    stages = _stages((ROOT / "Dockerfile").read_text())
    stage = stages[target] if target else list(stages.values())[-1]
    return Image(env=stage.env, entrypoint=_init_of(stage), command=stage.command, source=source)


def _init_of(stage: _Stage) -> tuple[str, ...]:
    """Its entry point; where this machine has no tini, under a process 1 that does the same."""
    if stage.entrypoint[:2] != ("tini", "--") or shutil.which("tini"):
        return stage.entrypoint
    assert (Path(sys.prefix) / "bin" / "dumb-init").exists(), "neither tini nor dumb-init is here"
    return ("/opt/venv/bin/dumb-init", "--single-child", "--", *stage.entrypoint[2:])


def kernels_built_ahead(folder: Path) -> Path:
    """Of this machine's processor, as `tools.prebuild` makes them; kept for later tests."""
    target = targets_here()[0]
    kept = cache_folder().parent / "baton-built-ahead"
    kept.mkdir(parents=True, exist_ok=True)
    found = shutil.which("cc") or shutil.which("gcc")
    assert found is not None, "no C compiler"
    for kernels in prebuild.ALL:
        if not kernels.prebuilt(target, kept).exists():
            kernels.prebuild(target, kept, compiler=found)
    shutil.copytree(kept, folder)
    folder.chmod(0o755)
    return folder


def built_again(image: Image, folder: Path, *, more: Mapping[str, str] | None = None) -> Image:
    """Another build of it, whose sources are a copy; `more`: files in it, by their path there."""
    for package in PACKAGES:
        shutil.copytree(
            image.source / package, folder / package, ignore=shutil.ignore_patterns("*.tmp")
        )
    shutil.copytree(image.source / "models" / "tiny", folder / "models" / "tiny")
    compileall.compile_dir(folder, quiet=1)
    for path, text in (more or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    folder.chmod(0o755)
    return replace(image, source=folder)


def _stages(dockerfile: str) -> dict[str, _Stage]:
    found: dict[str, _Stage] = {}
    stage = _Stage(env={"PATH": BASE_PATH})
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        word, _, rest = line.strip().partition(" ")
        match word.upper():
            case "FROM":
                names = [one for one in rest.split() if not one.startswith("--")]
                base = found.get(names[0])
                stage = (
                    _Stage(dict(base.env), base.entrypoint, base.command)
                    if base
                    else _Stage(env={"PATH": BASE_PATH})
                )
                found[names[2] if len(names) > 2 else f"#{len(found)}"] = stage
            case "ENV":
                for pair in shlex.split(rest):
                    name, _, value = pair.partition("=")
                    stage.env[name] = _expanded(value, stage.env)
            case "ENTRYPOINT":
                stage.entrypoint = tuple(json.loads(rest))
            case "CMD":
                stage.command = tuple(json.loads(rest))
            case _:
                pass
    return found


def _expanded(value: str, env: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: env.get(found[1], found[0]), value)
