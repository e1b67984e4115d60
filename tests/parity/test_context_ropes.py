"""Ropes that reach beyond the trained length: their logits, and what `max_model_len` chooses."""

import json
from pathlib import Path

import pytest
import torch
from support.configs import refused
from support.family_shapes import LONGROPE, YARN
from support.forwards import pool_for, split_logits
from support.reference import reference
from torch import Tensor

from engine.checkpoint.load import load_model
from engine.models.config import read_config
from engine.models.rope import yarn_attention_factor
from protocol.layout import compat_hash
from tools.make_checkpoint import Shape, make_checkpoint

TOLERANCE = 1e-4
PHI = Shape(
    family="phi3", context=256, rope=LONGROPE, extra={"original_max_position_embeddings": 64}
)
DYNAMIC = Shape(context=64, rope={"rope_type": "dynamic", "factor": 4.0})


def ours(path: Path, token_ids: list[int], *, max_model_len: int | None = None) -> Tensor:
    config = read_config(path, max_model_len=max_model_len)
    model = load_model(path, dtype="float32", native=False, config=config)
    sizes = [len(token_ids) - 3, 1, 2]
    return split_logits(
        model, pool_for(model, num_blocks=32), token_ids, sizes=sizes, first_block=31
    )


def of_transformers(path: Path, token_ids: list[int]) -> Tensor:
    """Of one call, which is as long as the sequence."""
    with torch.inference_mode():
        logits: Tensor = reference(path)(torch.tensor([token_ids])).logits[0]
    return logits


def error(got_TV: Tensor, expected_TV: Tensor) -> float:
    return float((got_TV - expected_TV).abs().max() / expected_TV.abs().max())


def tokens(num_tokens: int) -> list[int]:
    return [(7 * index) % 500 for index in range(num_tokens)]


@pytest.mark.parametrize(
    ("shape", "max_model_len", "num_tokens"),
    [
        pytest.param(PHI, 64, 40, id="longrope-short-factors-within-the-original"),
        pytest.param(PHI, 64, 64, id="longrope-short-factors-to-its-last-token"),
        pytest.param(PHI, None, 100, id="longrope-long-factors-beyond-the-original"),
        pytest.param(PHI, 65, 65, id="longrope-long-factors-from-one-token-beyond"),
        pytest.param(DYNAMIC, 64, 40, id="dynamic-of-the-original-context"),
        pytest.param(DYNAMIC, 100, 80, id="dynamic-of-a-context-between"),
        pytest.param(
            Shape(family="qwen2", context=64, rope=YARN), None, 100, id="yarn-beyond-the-original"
        ),
        pytest.param(
            Shape(context=64, rope={"rope_type": "linear", "factor": 2.0}), None, 100,
            id="linear-beyond-the-original",
        ),
        pytest.param(
            Shape(context=64, rope=YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}), None, 30,
            id="yarn-with-mscales",
        ),
        pytest.param(
            Shape(context=256, rope=YARN | {"factor": None}, extra={"rope_theta": 5e4}), None, 30,
            id="yarn-whose-lengths-give-the-factor",
        ),
        pytest.param(
            Shape(context=64, rope=YARN | {"finetuned": True, "mystery": 1}), None, 100,
            id="yarn-with-keys-that-nobody-reads",
        ),
    ],
)  # fmt: skip
def test_logits_equal_those_of_transformers(
    tmp_path: Path, shape: Shape, max_model_len: int | None, num_tokens: int
) -> None:
    make_checkpoint(tmp_path, shape)
    token_ids = tokens(num_tokens)
    got_TV = ours(tmp_path, token_ids, max_model_len=max_model_len)
    assert error(got_TV, of_transformers(tmp_path, token_ids)) < TOLERANCE


@pytest.mark.parametrize("factor", [0.878, 1.3])
def test_the_attn_factor_of_yarn_multiplies_as_in_vllm(tmp_path: Path, factor: float) -> None:
    """transformers ignores it: there the factor that it makes is named instead."""
    make_checkpoint(tmp_path, Shape(context=64, rope=YARN | {"attn_factor": factor}))
    got_TV = ours(tmp_path, tokens(80))
    implied = yarn_attention_factor(4.0, mscale=None, mscale_all_dim=None)
    raw = Shape(context=64, rope=YARN | {"attention_factor": implied * factor}).config()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert error(got_TV, of_transformers(tmp_path, tokens(80))) < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "lengths", "num_choices"),
    [
        (PHI, (32, 64, 65, 256, None), 2),
        (DYNAMIC, (32, 64, 100, 256, None), 1),
        (Shape(family="qwen2", context=64, rope=YARN), (32, 64, 100, None), 1),
    ],
    ids=["longrope", "dynamic", "yarn"],
)
def test_workers_whose_length_chose_other_frequencies_never_pair(
    tmp_path: Path, shape: Shape, lengths: tuple[int | None, ...], num_choices: int
) -> None:
    """Of LongRoPE within the original all have the short ones, beyond it all the long ones."""
    make_checkpoint(tmp_path, shape)
    found = set()
    for length in lengths:
        config = read_config(tmp_path, max_model_len=length)
        model = load_model(tmp_path, dtype="float32", native=False, config=config)
        (layout,) = model.config.kv_layouts(block_tokens=8, dtype="float32")
        found.add(compat_hash(layout, model_revision=model.config.revision))
    assert len(found) == num_choices


def test_a_dynamic_rope_without_dims_to_scale_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, DYNAMIC.config() | {"head_dim": 2}, "dynamic", "more than two dims")
