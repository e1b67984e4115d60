"""Logits and greedy text against Hugging Face transformers, on random checkpoints."""

# Shapes: T tokens, V vocabulary.

import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forwards import chunk, logits, pool_for, split_logits, step
from support.reference import reference
from support.wrapped_shapes import ALL, OF_CACHES, write_shape
from torch import Tensor

from engine.checkpoint.load import load_model
from engine.models.model import Model
from engine.runner.cpu import TorchRunner

TOLERANCE = 1e-4
"""Relative to the largest logit; the bar is 1e-3, what we measure is 1e-6."""
TOLERANCE_BF16 = 3e-2
ROWS_OFF_BF16 = {"before": 3, "after": 3, "sparsemixer": 12}
"""Of 75, for a mixture of experts: a token whose router is near a tie chooses another expert when
weights are rounded. We measure one at most; rows that do not are within 1.2e-2. With SparseMixer 10
at most: its weights do not sum to one, and jump where a score leaves those near the best."""


@dataclass(frozen=True)
class Case:
    path: Path
    hf: Any
    token_ids: list[int]
    expected_TV: Tensor

    def error(self, got_TV: Tensor, rows: slice = slice(None)) -> float:
        scale = self.expected_TV.abs().max()
        return float((got_TV - self.expected_TV[rows]).abs().max() / scale)

    def rows_off(self, got_TV: Tensor, tolerance: float) -> int:
        scale = self.expected_TV.abs().max()
        return int(((got_TV - self.expected_TV).abs().amax(-1) > tolerance * scale).sum())


@pytest.fixture(scope="module", params=ALL)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp(request.param)
    shape = write_shape(path, request.param)
    hf = reference(path)
    generator = torch.Generator().manual_seed(5)
    token_ids = torch.randint(shape.vocab, (75,), generator=generator)
    with torch.inference_mode():
        expected_TV = hf(token_ids[None]).logits[0]
    return Case(path, hf, token_ids.tolist(), expected_TV)


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def model(case: Case, request: pytest.FixtureRequest) -> Model:
    return load_model(case.path, dtype="float32", native=request.param)


class Blocks:
    """A pool of enough blocks in no order; each table takes blocks that no other has."""

    def __init__(self, model: Model) -> None:
        (layout,) = model.config.kv_layouts(block_tokens=8, dtype="float32")
        groups = layout.num_groups
        self.pool = pool_for(model, num_blocks=32 * groups)
        generator = torch.Generator().manual_seed(7)
        self._free = iter(torch.randperm(self.pool.num_blocks, generator=generator).tolist())

    def table(self, num_tokens: int) -> list[int]:
        return list(islice(self._free, self.pool.layout.num_blocks(num_tokens)))


def chunked(model: Model, blocks: Blocks, token_ids: list[int], sizes: list[int]) -> Tensor:
    last = blocks.pool.num_blocks - 1
    return split_logits(model, blocks.pool, token_ids, sizes=sizes, first_block=last)


def test_logits_of_a_whole_prompt_equal_those_of_transformers(case: Case, model: Model) -> None:
    assert case.error(chunked(model, Blocks(model), case.token_ids, [75])) < TOLERANCE


def test_logits_of_chunks_then_single_tokens_equal_those_of_transformers(
    case: Case, model: Model
) -> None:
    sizes = [17, 1, 30, 8, *[1] * 19]
    assert case.error(chunked(model, Blocks(model), case.token_ids, sizes)) < TOLERANCE


def test_logits_after_a_prefix_that_another_sequence_computed_equal_those_of_transformers(
    case: Case, model: Model
) -> None:
    blocks, token_ids = Blocks(model), case.token_ids
    of_other = blocks.table(60)
    other_ids = token_ids[:32] + token_ids[:28]
    logits(model, blocks.pool, [chunk(other_ids, table=of_other, sequence="other")])
    shared = blocks.pool.layout.num_blocks(32)
    table = of_other[:shared] + blocks.table(75 - 32)
    got_TV = logits(model, blocks.pool, [chunk(token_ids[32:], start=32, table=table)])
    assert case.error(got_TV, slice(32, 75)) < TOLERANCE


def test_logits_in_a_ragged_batch_equal_those_of_transformers(case: Case, model: Model) -> None:
    blocks, token_ids = Blocks(model), case.token_ids
    a, b, c = blocks.table(75), blocks.table(24), blocks.table(9)
    logits(model, blocks.pool, [chunk(token_ids[:70], table=a, sequence="a")])
    logits(model, blocks.pool, [chunk(token_ids[:16], table=b, sequence="b")])
    batch = [
        chunk(token_ids[70:71], start=70, table=a, sequence="a"),
        chunk(token_ids[16:24], start=16, table=b, sequence="b"),
        chunk(token_ids[:9], table=c, sequence="c"),
    ]
    got_TV = logits(model, blocks.pool, batch)
    assert case.error(got_TV[:1], slice(70, 71)) < TOLERANCE
    assert case.error(got_TV[1:9], slice(16, 24)) < TOLERANCE
    assert case.error(got_TV[9:], slice(0, 9)) < TOLERANCE


def test_bfloat16_logits_are_near_those_of_transformers_in_float32(case: Case) -> None:
    model = load_model(case.path, dtype="bfloat16")
    sizes = [17, 1, 30, 8, *[1] * 19]
    mixture = model.config.mixture
    allowed = 0 if mixture is None else ROWS_OFF_BF16[mixture.rule.softmax]
    got_TV = chunked(model, Blocks(model), case.token_ids, sizes)
    assert case.rows_off(got_TV, TOLERANCE_BF16) <= allowed


@pytest.mark.parametrize("case", OF_CACHES, indirect=True, scope="module")
def test_greedy_text_of_64_tokens_equals_that_of_transformers(case: Case) -> None:
    model = load_model(case.path, dtype="float32")
    blocks = Blocks(model)
    runner, table = TorchRunner(model, blocks.pool), blocks.table(75)
    prompt = case.token_ids[:11]
    token_ids, start = prompt, 0
    outputs: list[int] = []
    while len(outputs) < 64:
        (token,) = step(runner, [chunk(token_ids, start=start, table=table)]).values()
        start += len(token_ids)
        token_ids = [token.token_id]
        outputs += token_ids
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = case.hf.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
    assert outputs == expected[0, len(prompt) :].tolist()
