"""Real worker processes on a model some of whose layers see a window."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.mini_router import MiniRouter
from support.worker_cluster import BLOCK, CONTEXT, GREEDY, WorkerCluster, drive, prompt

from protocol.messages import Finished, Landed
from tools.make_checkpoint import Shape, make_checkpoint

pytestmark = pytest.mark.system

WINDOW = 20
SHAPE = Shape(family="qwen2", layers=3, window=WINDOW, window_from_layer=1, context=CONTEXT)
"""One layer that sees all and two of a window: three KV groups."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerCluster]:
    path: Path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, SHAPE)
    with ExitStack() as stack:
        cluster = WorkerCluster(path, stack)
        cluster.start("prefill-0")
        cluster.start("decode-0")
        yield cluster


def test_disaggregated_tokens_equal_colocated_ones_and_only_windows_move(
    pair: WorkerCluster,
) -> None:
    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        tokens = prompt(CONTEXT - 16)
        _, apart = await router.disaggregated("apart", tokens, GREEDY)
        assert isinstance(apart.ending, Finished)
        landed = apart.find(Landed)
        assert isinstance(landed, Landed)
        assert landed.blocks_moved == (CONTEXT - 16) // BLOCK + 2 * -(-(WINDOW - 1) // BLOCK)

        _, again = await router.disaggregated("again", tokens, GREEDY)
        assert again.tokens == apart.tokens
        assert isinstance(again.ending, Finished)
        assert again.ending.cached_tokens == CONTEXT - 16
        local = await router.decode("decode-0", "local", tokens, GREEDY, salt="other")
        await router.ended(local)
        assert apart.tokens == local.tokens and len(local.tokens) == 12
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)
