"""A pod from its first container to its deletion: volumes, environment, probes, restarts, grace."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.pods.container import Container, Place, start_container, user_of
from support.pods.image import Image
from support.pods.network import Network
from support.pods.probes import look_of, watch
from support.pods.volumes import Kept, Object, make_volumes, mounts_of, refresh_volumes

RESTART_S = 1.0
"""A kubelet waits ten; nothing that is tested here may end by itself anyway."""
_LOCAL = "127.0.0.1 localhost\n::1 localhost\n"


@dataclass(slots=True, kw_only=True)
class Pod:
    """`run` it; `delete` ends it with its grace."""

    name: str
    namespace: str
    node: str
    owner: str
    """The Deployment's name."""
    template: str
    """Which of its templates."""
    labels: Mapping[str, str]
    spec: Object
    image: Callable[[str], Image]
    kept: Kept
    hosts: Callable[[], str]
    folder: Path
    address: str = ""
    ready_since: float | None = None
    """Monotonic seconds; None: it is not."""
    num_restarts: int = 0
    is_deleted: bool = False
    is_gone: bool = False
    exit_codes: list[int] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    was_killed: bool = False
    """It did not end within its grace."""
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    _unhealthy: asyncio.Event = field(default_factory=asyncio.Event)
    running: Container | None = None
    _volumes: Mapping[str, Path] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.ready_since is not None and not self.is_gone

    def is_available(self, min_ready_s: float) -> bool:
        since = self.ready_since
        return since is not None and time.monotonic() - since >= min_ready_s

    def delete(self) -> None:
        """As the API server: a grace of `terminationGracePeriodSeconds` begins."""
        self.is_deleted = True
        self._asked.set()

    def refresh(self) -> None:
        """Its mounted maps and secrets, by what they are now."""
        refresh_volumes(self.spec, self._volumes, self.kept)

    @property
    def output(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.logs if log.exists())

    async def run(self, net: Network) -> None:
        (only,) = self.spec["containers"]
        user = user_of(self.spec, only)
        gid = self.spec.get("securityContext", {}).get("fsGroup", user.gid)
        self._volumes = volumes = make_volumes(self.spec, self.folder, self.kept, gid=gid)
        try:
            with net.pod() as (space, address):
                self.address = address
                place = Place(
                    pod=self.name, space=space, folder=self.folder,
                    hosts=f"{_LOCAL}{address} {self.name}\n{self.hosts()}",
                )  # fmt: skip
                for first in self.spec.get("initContainers", ()):
                    await self._until_done(first, place, volumes)
                while not self.is_deleted:
                    await self._once(only, place, volumes)
        finally:
            self.is_gone, self.ready_since = True, None

    async def _start(
        self, container: Object, place: Place, volumes: Mapping[str, Path]
    ) -> Container:
        started = await start_container(
            container, self.image(container["image"]), place, user_of(self.spec, container),
            env=self._environment(container), mounts=mounts_of(container, volumes),
            number=len(self.logs),
        )  # fmt: skip
        self.logs.append(started.log)
        return started

    async def _until_done(
        self, container: Object, place: Place, volumes: Mapping[str, Path]
    ) -> None:
        while not self.is_deleted:
            started = await self._start(container, place, volumes)
            try:
                if await self._ended_or_asked(started) == 0:
                    return
            finally:
                await started.kill()
            self.num_restarts += 1
            await asyncio.sleep(RESTART_S)

    async def _once(self, container: Object, place: Place, volumes: Mapping[str, Path]) -> None:
        self.running = running = await self._start(container, place, volumes)
        self._unhealthy.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                probing = tasks.create_task(self._probe(container, running), name="probes")
                await self._ended_or_asked(running)
                await self._end(running)
                probing.cancel()
        finally:
            await running.kill()
            self.ready_since = None
        assert running.exit_code is not None
        self.exit_codes.append(running.exit_code)
        if not self.is_deleted:
            self.num_restarts += 1
            await asyncio.sleep(RESTART_S)

    async def _ended_or_asked(self, running: Container) -> int | None:
        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(running.wait(), name="ended"),
                tasks.create_task(self._asked.wait(), name="deleted"),
                tasks.create_task(self._unhealthy.wait(), name="unhealthy"),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()
        return running.exit_code

    async def _end(self, running: Container) -> None:
        if running.exit_code is not None:
            return
        running.signal(signal.SIGTERM)
        grace_s = float(self.spec.get("terminationGracePeriodSeconds", 30))
        try:
            await asyncio.wait_for(asyncio.shield(running.wait()), grace_s)
        except TimeoutError:
            self.was_killed = True

    async def _probe(self, container: Object, running: Container) -> None:
        started = asyncio.Event()
        probes = {
            name: container[f"{name}Probe"]
            for name in ("startup", "readiness", "liveness")
            if f"{name}Probe" in container
        }
        looks = {
            name: look_of(probe, container, self.address, running) for name, probe in probes.items()
        }

        def note_started(is_good: bool) -> None:
            (started if is_good else self._unhealthy).set()

        async with asyncio.TaskGroup() as tasks:
            if "startup" in probes:
                watching = watch(probes["startup"], looks["startup"], note_started)
                starting = tasks.create_task(watching, name="startup")
                await started.wait()
                starting.cancel()
            if "liveness" in probes:
                watching = watch(probes["liveness"], looks["liveness"], self._note_live)
                tasks.create_task(watching, name="liveness")
            if "readiness" in probes:
                watching = watch(probes["readiness"], looks["readiness"], self._note_ready)
                tasks.create_task(watching, name="readiness")
            else:
                self._note_ready(True)

    def _note_live(self, is_good: bool) -> None:
        if not is_good and not self.is_deleted:
            self._unhealthy.set()

    def _note_ready(self, is_good: bool) -> None:
        if not is_good:
            self.ready_since = None
        elif self.ready_since is None:
            self.ready_since = time.monotonic()

    def _environment(self, container: Object) -> dict[str, str]:
        found: dict[str, str] = {}
        for whole in container.get("envFrom", ()):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in whole:
                    found |= self.kept.contents(kind, whole[key]["name"])
        for one in container.get("env", ()):
            value = self._value(one["valueFrom"]) if "valueFrom" in one else one.get("value", "")
            if value is not None:
                for name, known in found.items():
                    value = value.replace(f"$({name})", known)
                found[one["name"]] = value
        return found

    def _value(self, source: Object) -> str | None:
        match source:
            case {"fieldRef": {"fieldPath": path}}:
                return {
                    "metadata.name": self.name,
                    "metadata.namespace": self.namespace,
                    "status.podIP": self.address,
                    "status.podIPs": self.address,
                    "spec.nodeName": self.node,
                }[path]
            case {"secretKeyRef": ref}:
                return self.kept.value("Secret", ref)
            case {"configMapKeyRef": ref}:
                return self.kept.value("ConfigMap", ref)
            case _:
                raise AssertionError(f"valueFrom {source}: not played here")
