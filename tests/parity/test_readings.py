"""Scores and pooled hidden states of prompts against transformers, in chunks, on both runners."""

# Shapes: T tokens, K hidden size, V vocabulary.

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_shapes import SHAPES
from support.forwards import GREEDY, chunk, pool_for
from support.host_device import HostDevice
from support.reference import reference
from torch import Tensor

from engine.batch import ReadRows, RowsRead, ScoredRows, SequenceId, SummedRows
from engine.checkpoint.load import load_model
from engine.limits import EngineLimits
from engine.models.model import Model
from engine.runner import prompt_rows
from engine.runner.contract import Runner
from engine.runner.cpu import TorchRunner
from engine.runner.gpu.runner import DeviceRunner
from engine.sampling.rows import sample_on_host
from protocol.readings import TokenScore
from tools.make_checkpoint import make_checkpoint

FAMILIES = ["llama", "gemma2", "cohere", "qwen3-moe", "gpt-oss"]
"""Heads that are tied, soft-capped and divided; layers whose MLP goes beside, and experts."""
SIZES = (17, 9, 14)
NUM_TOP = 3
TOLERANCE = 2e-4
LIMITS = EngineLimits(max_running=4, max_waiting=1, token_budget=64, max_context_tokens=64)


@dataclass(frozen=True)
class Case:
    model: Model
    token_ids: list[int]
    logprobs_TV: Tensor
    hidden_TK: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path: Path = tmp_path_factory.mktemp(request.param)
    shape = SHAPES[request.param]
    make_checkpoint(path, shape)
    hf: Any = reference(path)
    token_ids = torch.randint(shape.vocab, (40,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        said = hf(token_ids[None], output_hidden_states=True)
    model = load_model(path, dtype="float32")
    logprobs_TV = said.logits[0].double().log_softmax(-1)
    return Case(model, token_ids.tolist(), logprobs_TV, said.hidden_states[-1][0])


@pytest.fixture(params=["host", "device"])
def runner(case: Case, request: pytest.FixtureRequest) -> Runner:
    pool = pool_for(case.model)
    if request.param == "host":
        return TorchRunner(case.model, pool)
    return DeviceRunner(
        case.model, pool, device=HostDevice(), sampler=sample_on_host, limits=LIMITS
    )


def read(runner: Runner, token_ids: list[int], *, scores: bool) -> list[RowsRead]:
    """Of a prompt in chunks, beside a neighbour that samples; the last one samples too."""
    found, start = list[RowsRead](), 0
    groups = runner.layout.num_groups
    table, beside = range(6 * groups), range(6 * groups, 8 * groups)
    for size in SIZES:
        stop = start + size
        num_rows = min(stop, len(token_ids) - scores) - start
        targets = token_ids[start + 1 : start + 1 + num_rows] if scores else None
        wanted = ReadRows(rows=range(num_rows), targets=targets, num_top=NUM_TOP)
        rule = GREEDY if stop == len(token_ids) else None
        mine = chunk(token_ids[start:stop], table=table, start=start, read=wanted, sampling=rule)
        step = runner.launch([chunk([5, 6], table=beside, sequence="b"), mine])
        assert len(step.tokens()) == 1 + (stop == len(token_ids))
        (one,) = step.readings().values()
        found, start = [*found, one], stop
    return found


def test_every_token_is_as_likely_as_transformers_says(
    case: Case, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_rows, "SLAB_LOGITS", 5 * case.model.config.vocab_size)
    scored = list[TokenScore]()
    for part in read(runner, case.token_ids, scores=True):
        assert isinstance(part, ScoredRows)
        scored += part.scores
    assert [score.token_id for score in scored] == case.token_ids[1:]
    for row_V, score in zip(case.logprobs_TV, scored, strict=False):
        assert score.logprob == pytest.approx(float(row_V[score.token_id]), abs=TOLERANCE)
        assert score.rank == 1 + int((row_V > row_V[score.token_id]).sum())
        expected = row_V.topk(NUM_TOP)
        assert [token_id for token_id, _ in score.top] == expected.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(
            expected.values.tolist(), abs=TOLERANCE
        )


def test_hidden_states_after_the_last_norm_are_summed(case: Case, runner: Runner) -> None:
    total_K = torch.zeros(case.hidden_TK.shape[1], dtype=torch.float64)
    for part in read(runner, case.token_ids, scores=False):
        assert isinstance(part, SummedRows)
        total_K += torch.tensor(part.values)
    expected_K = case.hidden_TK.double().sum(0)
    assert (total_K - expected_K).abs().max() < TOLERANCE * expected_K.abs().max()


def test_tokens_are_the_same_whether_or_not_the_prompt_is_read(case: Case, runner: Runner) -> None:
    table = range(6 * runner.layout.num_groups)
    wanted = ReadRows(rows=range(39), targets=case.token_ids[1:])
    plain = runner.launch([chunk(case.token_ids, table=table)]).tokens()
    beside = runner.launch([chunk(case.token_ids, table=table, read=wanted)]).tokens()
    assert plain == beside and SequenceId("a") in plain
