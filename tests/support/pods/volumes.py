"""What a pod's containers find mounted, as folders of this machine."""

import base64
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mount:
    source: Path
    place: str
    is_read_only: bool


@dataclass(slots=True)
class Kept:
    """What pods refer to by name."""

    objects: dict[str, Object]
    """`Kind/name`: ConfigMaps and Secrets among them."""
    claims: Mapping[str, Path]
    """Folders by the claim's name."""

    def value(self, kind: str, ref: Mapping[str, Any]) -> str | None:
        """Of a `configMapKeyRef` or `secretKeyRef`. KeyError when a pod could not start."""
        found = self.contents(kind, ref["name"], is_optional=bool(ref.get("optional")))
        if ref["key"] not in found and ref.get("optional"):
            return None
        return found[ref["key"]]

    def contents(self, kind: str, name: str, *, is_optional: bool = False) -> dict[str, str]:
        thing = self.objects.get(f"{kind}/{name}")
        if thing is None and is_optional:
            return {}
        if thing is None:
            raise KeyError(f"{kind}/{name}")
        coded = thing.get("data", {}) if kind == "Secret" else {}
        plain = thing.get("stringData", {}) if kind == "Secret" else thing.get("data", {})
        return {**{key: base64.b64decode(text).decode() for key, text in coded.items()}, **plain}


def make_volumes(spec: Object, folder: Path, kept: Kept, *, gid: int) -> dict[str, Path]:
    """Folders by the names of the pod's volumes. AssertionError for kinds that are not played."""
    made: dict[str, Path] = {}
    for volume in spec.get("volumes", ()):
        name, path = volume["name"], folder / "volumes" / volume["name"]
        match volume:
            case {"emptyDir": _}:
                path.mkdir(parents=True)
                os.chown(path, 0, gid)
                path.chmod(0o2777)
            case {"configMap": of}:
                _write(path, kept.contents("ConfigMap", of["name"]), of)
            case {"secret": of}:
                _write(path, kept.contents("Secret", of["secretName"]), of)
            case {"persistentVolumeClaim": {"claimName": of}}:
                path = kept.claims[of]
            case {"hostPath": {"path": of}}:
                path = Path(of)
            case _:
                raise AssertionError(f"volume {volume}: not played here")
        made[name] = path
    return made


def refresh_volumes(spec: Object, volumes: Mapping[str, Path], kept: Kept) -> None:
    """What was changed of mounted maps and secrets is seen by who looks, as kubelets see to."""
    for volume in spec.get("volumes", ()):
        if volume["name"] in volumes and "configMap" in volume:
            of = volume["configMap"]
            _write(volumes[volume["name"]], kept.contents("ConfigMap", of["name"]), of)
        elif volume["name"] in volumes and "secret" in volume:
            of = volume["secret"]
            _write(volumes[volume["name"]], kept.contents("Secret", of["secretName"]), of)


def mounts_of(container: Object, volumes: Mapping[str, Path]) -> list[Mount]:
    found = []
    for mount in container.get("volumeMounts", ()):
        source = volumes[mount["name"]] / mount.get("subPath", "")
        if mount.get("subPath") and not source.exists():
            source.mkdir(parents=True)
            shutil.copystat(volumes[mount["name"]], source)
        place = mount["mountPath"]
        found.append(Mount(source, place, bool(mount.get("readOnly"))))
    return sorted(found, key=lambda one: one.place)


def _write(path: Path, contents: Mapping[str, str], more: Object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    items = more.get("items") or [{"key": key, "path": key} for key in contents]
    for item in items:
        draft = path / f".{item['path']}"
        draft.write_text(contents[item["key"]])
        draft.chmod(0o644)
        draft.rename(path / item["path"])
