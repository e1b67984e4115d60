"""Logits and greedy text against Hugging Face transformers, on random checkpoints."""

# Shapes: T tokens, V vocabulary.

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forwards import chunk, logits, pool_for, split_logits, step
from torch import Tensor

from engine.model import Model, load_model
from engine.torch_runner import TorchRunner
from tools.make_checkpoint import Shape, make_checkpoint

TOLERANCE = 1e-4
"""Relative to the largest logit; the bar is 1e-3, what we measure is 1e-6."""
TOLERANCE_BF16 = 3e-2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES = {
    "llama": Shape(),
    "llama-tied-heads-not-grouped": Shape(tied=True, kv_heads=4),
    "llama-biases": Shape(bias=True),
    "llama-wide-heads": Shape(head_dim=40),
    "llama-odd-vocabulary-sharded": Shape(vocab=509, shard_bytes=50_000),
    "llama-linear-rope": Shape(rope={"rope_type": "linear", "factor": 2.0}),
    "llama-llama3-rope": Shape(rope=LLAMA3, rope_theta=500_000.0),
    "llama-llama3-rope-legacy": Shape(rope=LLAMA3, legacy_rope=True, rope_theta=500_000.0),
    "llama-one-kv-head": Shape(kv_heads=1, heads=8, head_dim=16),
    "mistral": Shape(family="mistral"),
    "mistral-window": Shape(family="mistral", window=7),
    "qwen2": Shape(family="qwen2"),
    "qwen2-yarn": Shape(family="qwen2", context=256, rope=YARN, tied=True),
    "qwen2-yarn-attention-factor": Shape(
        family="qwen2", context=256, rope=YARN | {"attention_factor": 1.5}
    ),
    "qwen2-window-upper-layers": Shape(family="qwen2", window=9, window_from_layer=1),
    "qwen3": Shape(family="qwen3", head_dim=32),
    "qwen3-tied-bias-window": Shape(family="qwen3", head_dim=16, tied=True, bias=True, window=20),
}


@dataclass(frozen=True)
class Case:
    path: Path
    hf: Any
    token_ids: list[int]
    expected_TV: Tensor

    def error(self, got_TV: Tensor, rows: slice = slice(None)) -> float:
        scale = self.expected_TV.abs().max()
        return float((got_TV - self.expected_TV[rows]).abs().max() / scale)


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp(request.param)
    shape = SHAPES[request.param]
    make_checkpoint(path, shape)
    hf = reference(path)
    generator = torch.Generator().manual_seed(5)
    token_ids = torch.randint(shape.vocab, (75,), generator=generator)
    with torch.inference_mode():
        expected_TV = hf(token_ids[None]).logits[0]
    return Case(path, hf, token_ids.tolist(), expected_TV)


def reference(path: Path) -> Any:
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def model(case: Case, request: pytest.FixtureRequest) -> Model:
    return load_model(case.path, dtype="float32", native=request.param)


def test_logits_of_a_whole_prompt_equal_those_of_transformers(case: Case, model: Model) -> None:
    got_TV = split_logits(model, pool_for(model), case.token_ids, sizes=[75], first_block=40)
    assert case.error(got_TV) < TOLERANCE


def test_logits_of_chunks_then_single_tokens_equal_those_of_transformers(
    case: Case, model: Model
) -> None:
    sizes = [17, 1, 30, 8, *[1] * 19]
    got_TV = split_logits(model, pool_for(model), case.token_ids, sizes=sizes, first_block=40)
    assert case.error(got_TV) < TOLERANCE


def test_logits_in_a_ragged_batch_equal_those_of_transformers(case: Case, model: Model) -> None:
    pool, token_ids = pool_for(model), case.token_ids
    tables = {"a": [9, 3, 60, 11, 5, 30, 21, 1, 2, 4], "b": [50, 51, 52], "c": [40, 41, 42]}
    logits(model, pool, [chunk(token_ids[:70], table=tables["a"], sequence="a")])
    logits(model, pool, [chunk(token_ids[:16], table=tables["b"], sequence="b")])
    batch = [
        chunk(token_ids[70:71], start=70, table=tables["a"], sequence="a"),
        chunk(token_ids[16:24], start=16, table=tables["b"], sequence="b"),
        chunk(token_ids[:3], table=tables["c"], sequence="c"),
    ]
    got_TV = logits(model, pool, batch)
    assert case.error(got_TV[:1], slice(70, 71)) < TOLERANCE
    assert case.error(got_TV[1:9], slice(16, 24)) < TOLERANCE
    assert case.error(got_TV[9:], slice(0, 3)) < TOLERANCE


def test_bfloat16_logits_are_near_those_of_transformers_in_float32(case: Case) -> None:
    model = load_model(case.path, dtype="bfloat16")
    sizes = [17, 1, 30, 8, *[1] * 19]
    got_TV = split_logits(model, pool_for(model), case.token_ids, sizes=sizes, first_block=40)
    assert case.error(got_TV) < TOLERANCE_BF16


def test_greedy_text_of_64_tokens_equals_that_of_transformers(case: Case) -> None:
    model = load_model(case.path, dtype="float32")
    runner = TorchRunner(model, pool_for(model))
    prompt = case.token_ids[:11]
    token_ids, start = prompt, 0
    outputs: list[int] = []
    while len(outputs) < 64:
        (token,) = step(runner, [chunk(token_ids, start=start, table=range(20))]).values()
        start += len(token_ids)
        token_ids = [token.token_id]
        outputs += token_ids
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = case.hf.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
    assert outputs == expected[0, len(prompt) :].tolist()
