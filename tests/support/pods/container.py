"""One container as the kernel has it: namespaces, root, user, process 1, signals, exit code."""

import asyncio
import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.pods.image import Image
from support.pods.volumes import Mount, Object

_SCRIPT = Path(__file__).with_name("pod_root.sh")
KILL_AGAIN_S = 0.5
"""There may have been no process 1 yet."""
_REFERENCE = re.compile(r"\$\(([A-Za-z0-9_.-]+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it runs."""

    pod: str
    space: str
    """The network namespace."""
    folder: Path
    """Of this machine, for what the pod leaves there."""
    hosts: str
    """Of `/etc/hosts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    uid: int
    gid: int
    is_root_read_only: bool


def user_of(pod: Object, container: Object) -> User:
    whole, own = pod.get("securityContext", {}), container.get("securityContext", {})
    uid = own.get("runAsUser", whole.get("runAsUser", 1000))
    gid = own.get("runAsGroup", whole.get("runAsGroup", 0))
    assert uid or not whole.get("runAsNonRoot"), "a pod that must not be root is root"
    return User(uid=uid, gid=gid, is_root_read_only=bool(own.get("readOnlyRootFilesystem")))


class Container:
    """Running from `start` on."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, entered: list[str]) -> None:
        self._process = process
        self._entered = entered
        self.log = log

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To process 1, as the kernel passes it: what it has no handler for is ignored."""
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Of process 1, as we see it. ValueError before there is one."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(path.read_text().split()[0]) if path.read_text().split() else _none()

    async def run(self, command: Sequence[str], within_s: float) -> bool:
        """Another command in it, as `kubectl exec`; whether it exits 0 in time."""
        try:
            words = ("nsenter", "--all", "--target", str(self.pid), "--root", "--wd", "--")
        except (ValueError, FileNotFoundError):
            return False
        other = await asyncio.create_subprocess_exec(
            *words, *self._entered, *command,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return await asyncio.wait_for(other.wait(), within_s) == 0
        except TimeoutError:
            other.kill()
            await other.wait()
            return False

    async def kill(self) -> None:
        """Process 1 and with it all: its parent's death would not tell it, once it is another
        user's."""
        while self._process.returncode is None:
            self.signal(signal.SIGKILL)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), KILL_AGAIN_S)


async def start_container(
    container: Object, image: Image, place: Place, user: User, *,
    env: Mapping[str, str], mounts: Sequence[Mount], number: int,
) -> Container:  # fmt: skip
    """`number`: of the start, in the name of its log."""
    name = container["name"]
    folder = place.folder / f"{name}-{number}"
    (folder / "root").mkdir(parents=True)
    command, args = container.get("command"), container.get("args")
    words = [*(command or image.entrypoint), *(args or (() if command else image.command))]
    variables = {**image.environment(), **env}
    said = [_REFERENCE.sub(lambda one: variables.get(one[1], one[0]), word) for word in words]
    binds = [Mount(source, at, is_read_only=True) for at, source in image.mounts().items()]
    (folder / "mounts").write_text(
        "".join(
            f"{'ro' if one.is_read_only else 'rw'} {one.source} {one.place}\n"
            for one in (*binds, *mounts)
        )
    )
    (folder / "hosts").write_text(place.hosts)
    named = {
        "pod_root": folder / "root", "pod_name": place.pod, "pod_hosts": folder / "hosts",
        "pod_mounts": folder / "mounts", "pod_read_only": int(user.is_root_read_only),
        "pod_workdir": container.get("workingDir", "/tmp"),
    }  # fmt: skip
    lines = [f"{key}={shlex.quote(str(value))}\n" for key, value in named.items()]
    (folder / "variables").write_text("".join(lines))
    entered = [
        "/usr/bin/env", "-i", *(f"{key}={value}" for key, value in variables.items()),
        "/usr/bin/setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups",
        "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net=/run/netns/{place.space}", "unshare", "--mount", "--pid", "--uts",
            "--ipc", "--fork", "--kill-child=SIGKILL", "sh", str(_SCRIPT),
            str(folder / "variables"), *entered[2:], *said,
            stdin=asyncio.subprocess.DEVNULL, stdout=told, stderr=told,
        )  # fmt: skip
    return Container(process, log, entered)


def _none() -> int:
    raise ValueError("it has no process yet")
