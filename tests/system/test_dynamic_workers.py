"""Real worker processes on a model with a dynamic rope: they tell routers how far its prompts share
blocks, and share them no further."""

import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from support.mini_router import MiniRouter
from support.reference import reference
from support.worker_cluster import GREEDY, WorkerCluster, drive, prompt

from protocol.messages import Finished
from tools.make_checkpoint import Shape, make_checkpoint

pytestmark = pytest.mark.system

ORIGINAL = 16


def said_by_transformers(path: Path, token_ids: list[int]) -> list[int]:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = reference(path).generate(
            torch.tensor([token_ids]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
    return list(said[0, len(token_ids) :].tolist())


def test_workers_apart_answer_as_transformers_and_share_what_was_turned_alike(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "factor": 16.0}
    make_checkpoint(tmp_path, Shape(context=ORIGINAL, rope=rope))

    async def test(router: MiniRouter) -> None:
        await router.ready("prefill-0", "decode-0")
        told = [one.registration.dynamic_after for one in await router.store.list_workers()]
        assert told == [ORIGINAL, ORIGINAL]
        for length, cached in ((12, 0), (16, 8), (90, 0), (89, 0), (90, 88)):
            tokens = prompt(length)
            _, apart = await router.disaggregated(f"{length}-{cached}", tokens, GREEDY)
            assert isinstance(apart.ending, Finished)
            assert apart.ending.cached_tokens == cached
            assert apart.tokens == said_by_transformers(tmp_path, tokens)

    with ExitStack() as stack:
        cluster = WorkerCluster(tmp_path, stack)
        for worker in ("prefill-0", "decode-0"):
            cluster.start(worker)
        drive(cluster, test)
