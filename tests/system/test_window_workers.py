"""Real worker processes on a model some of whose layers see a window."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.mini_router import MiniRouter
from support.worker_cluster import BLOCK, CONTEXT, GREEDY, WorkerCluster, drive, prompt

from engine.models.config import read_config
from protocol.messages import Finished, Landed
from tools.make_checkpoint import Shape, make_checkpoint

pytestmark = pytest.mark.system

WINDOW = 20
SHAPES = {
    "one layer that sees all and two of a window": Shape(
        family="qwen2", layers=3, window=WINDOW, window_from_layer=1, context=CONTEXT
    ),
    "sinks and a mixture of experts": Shape(
        family="gpt_oss", bias=True, head_dim=16, layers=4, window=WINDOW, context=CONTEXT
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, SHAPES[request.param])
    return path


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Iterator[WorkerCluster]:
    path = checkpoint
    with ExitStack() as stack:
        cluster = WorkerCluster(path, stack)
        cluster.start("prefill-0")
        cluster.start("decode-0")
        yield cluster


def test_disaggregated_tokens_equal_colocated_ones_and_only_windows_move(
    pair: WorkerCluster, checkpoint: Path
) -> None:
    windows = [group.window for group in read_config(checkpoint).kv_groups]
    num_seen = [CONTEXT - 16 if window is None else window - 1 for window in windows]

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        for record in await router.store.list_workers():
            assert record.registration.is_prefix_closed, "told of the layers without a window"
        tokens = prompt(CONTEXT - 16)
        _, apart = await router.disaggregated("apart", tokens, GREEDY)
        assert isinstance(apart.ending, Finished)
        landed = apart.find(Landed)
        assert isinstance(landed, Landed)
        assert landed.blocks_moved == sum(-(-tokens // BLOCK) for tokens in num_seen)

        _, again = await router.disaggregated("again", tokens, GREEDY)
        assert again.tokens == apart.tokens
        assert isinstance(again.ending, Finished)
        assert again.ending.cached_tokens == CONTEXT - 16
        local = await router.decode("decode-0", "local", tokens, GREEDY, salt="other")
        await router.ended(local)
        assert apart.tokens == local.tokens and len(local.tokens) == 12
        await router.idle("prefill-0", "decode-0")

    drive(pair, test)
