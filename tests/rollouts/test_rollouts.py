"""Everything changed under load, with one and two of each, and Services that lag by half a second
and by three. Not one failed, cut or wrong answer, and no pod restarts."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.pods import changes
from support.pods.network import can_have_pods

pytestmark = [
    pytest.mark.rollouts,
    pytest.mark.skipif(not can_have_pods(), reason="needs root and network namespaces"),
    pytest.mark.timeout(590),
]
Change = Callable[..., Awaitable[None]]
ALL: tuple[Change, ...] = (
    changes.the_image,
    changes.the_image_without_a_spare,
    changes.wire_version_up,
    changes.wire_version_down,
    changes.dtype,
    changes.weights,
    changes.another_tokenizer_under_one_name,
    changes.an_alias_moved,
    changes.routers_restarted_in_mid_answer,
    changes.redis_late,
    changes.redis_away,
)


@pytest.mark.parametrize("lag_s", [0.5, 3.0])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("change", ALL, ids=lambda change: change.__name__)
def test_nobody_notices(change: Change, replicas: int, lag_s: float, tmp_path: Path) -> None:
    async def test() -> None:
        await change(tmp_path, replicas=replicas, lag_s=lag_s)

    asyncio.run(test())


@pytest.mark.parametrize("lag_s", [0.5, 3.0])
def test_nobody_notices_that_a_node_is_drained(lag_s: float, tmp_path: Path) -> None:
    """Of two: who has one replica of each has nowhere to be served from meanwhile."""
    asyncio.run(changes.a_node_drained(tmp_path, replicas=2, lag_s=lag_s))


def test_nobody_notices_on_a_network_of_ipv6_alone(tmp_path: Path) -> None:
    asyncio.run(changes.the_image(tmp_path, replicas=1, lag_s=0.5, family=6))


def test_nobody_notices_where_a_pod_has_workers_of_both_roles(tmp_path: Path) -> None:
    asyncio.run(changes.the_image_of_nodes(tmp_path, replicas=1, lag_s=0.5))


def test_an_install_answers_and_an_uninstall_leaves_nothing(tmp_path: Path) -> None:
    asyncio.run(changes.installed_and_uninstalled(tmp_path))
