"""What a played Deployment does next, by its strategy: decided as Kubernetes' controller does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from support.pods.deployment import decide, is_rolled_out, template_of


@dataclass(frozen=True)
class Seen:
    template: str = "old"
    is_deleted: bool = False
    is_gone: bool = False
    is_ready: bool = True

    def is_available(self, min_ready_s: float) -> bool:
        return self.is_ready


def deployment(replicas: int = 2, **spec: Any) -> dict[str, Any]:
    return {"spec": {"replicas": replicas, "template": {"spec": {}}, **spec}}


def rolling(surge: int | str, unavailable: int | str) -> dict[str, Any]:
    return {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}


def new(is_ready: bool = True) -> Seen:
    return Seen(template_of(deployment()), is_ready=is_ready)


OLD = Seen()
LATE = Seen(is_ready=False)


@pytest.mark.parametrize(
    ("strategy", "pods", "num_new", "deleted"),
    [
        (rolling(1, 0), [OLD, OLD], 1, []),
        (rolling(1, 0), [OLD, OLD, new(is_ready=False)], 0, []),
        (rolling(1, 0), [OLD, OLD, new()], 0, [OLD]),
        (rolling(1, 0), [OLD, new()], 1, []),
        (rolling(0, 1), [OLD, OLD], 0, [OLD]),
        (rolling(0, 1), [OLD], 1, []),
        (rolling("25%", "25%"), [OLD, OLD], 1, []),  # one more, none less
        (rolling(1, 0), [OLD, LATE], 1, [LATE]),  # who serves nobody goes at once
        ({"strategy": {"type": "Recreate"}}, [OLD, new()], 0, [OLD]),
        ({"strategy": {"type": "Recreate"}}, [Seen(is_deleted=True)], 0, []),
        ({"strategy": {"type": "Recreate"}}, [Seen(is_deleted=True, is_gone=True)], 2, []),
    ],
)
def test_old_pods_go_as_new_ones_are_available(
    strategy: dict[str, Any], pods: Sequence[Seen], num_new: int, deleted: list[Seen]
) -> None:
    decision = decide(deployment(**strategy), pods)
    assert (decision.num_new, list(decision.to_delete)) == (num_new, deleted)


def test_scaled_down_it_loses_first_who_is_not_ready() -> None:
    late = new(is_ready=False)
    assert decide(deployment(replicas=1), [new(), late]).to_delete == (late,)


def test_it_is_rolled_out_when_the_old_are_gone() -> None:
    assert not is_rolled_out(deployment(1), [new(), Seen(is_deleted=True)])
    assert is_rolled_out(deployment(1), [new(), Seen(is_deleted=True, is_gone=True)])
    assert not is_rolled_out(deployment(1), [new(is_ready=False)])
