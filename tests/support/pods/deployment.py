"""A Deployment's controller: pods of the newest template in the place of older ones, as its
strategy allows. Deciding is pure; who starts and ends pods is `support.pods.cluster`."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from support.pods.volumes import Object


class Seen(Protocol):
    """What is decided by of a pod."""

    @property
    def template(self) -> str: ...
    @property
    def is_deleted(self) -> bool: ...
    @property
    def is_gone(self) -> bool: ...
    @property
    def is_ready(self) -> bool: ...
    def is_available(self, min_ready_s: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Decision:
    num_new: int
    """Pods to start, of the newest template."""
    to_delete: tuple[Seen, ...]


def template_of(deployment: Object) -> str:
    text = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def decide(deployment: Object, pods: Sequence[Seen]) -> Decision:
    """`pods`: all of this deployment, of any template."""
    spec, newest = deployment["spec"], template_of(deployment)
    wanted: int = spec.get("replicas", 1)
    active = [pod for pod in pods if not pod.is_deleted and not pod.is_gone]
    new = [pod for pod in active if pod.template == newest]
    old = [pod for pod in active if pod.template != newest]
    strategy = spec.get("strategy", {})
    min_ready_s = float(spec.get("minReadySeconds", 0))
    if strategy.get("type") == "Recreate":
        is_clear = all(pod.is_gone or pod.template == newest for pod in pods)
        surplus = _least_wanted(new)[: max(0, len(new) - wanted)]
        return Decision(max(0, wanted - len(new)) if is_clear else 0, (*old, *surplus))
    surge, unavailable = _rolling(strategy.get("rollingUpdate", {}), wanted)
    num_new = max(0, min(wanted - len(new), wanted + surge - len(active)))
    surplus = _least_wanted(new)[: max(0, len(new) - wanted)]
    num_available = sum(pod.is_available(min_ready_s) for pod in active)
    num_spare = max(0, num_available - (wanted - unavailable))
    idle = [pod for pod in old if not pod.is_available(min_ready_s)]
    serving = [pod for pod in old if pod.is_available(min_ready_s)]
    return Decision(num_new, (*surplus, *idle, *serving[:num_spare]))


def is_rolled_out(deployment: Object, pods: Sequence[Seen]) -> bool:
    spec, newest = deployment["spec"], template_of(deployment)
    there = [pod for pod in pods if not pod.is_gone]
    min_ready_s = float(spec.get("minReadySeconds", 0))
    return len(there) == spec.get("replicas", 1) and all(
        pod.template == newest and not pod.is_deleted and pod.is_available(min_ready_s)
        for pod in there
    )


def _rolling(rolling: Object, wanted: int) -> tuple[int, int]:
    surge = _share(rolling.get("maxSurge", "25%"), wanted, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def _share(given: int | str, wanted: int, *, up: bool) -> int:
    if isinstance(given, int):
        return given
    exact = wanted * int(given.removesuffix("%")) / 100
    return math.ceil(exact) if up else math.floor(exact)


def _least_wanted(pods: Sequence[Seen]) -> list[Seen]:
    return sorted(pods, key=lambda pod: pod.is_ready)
