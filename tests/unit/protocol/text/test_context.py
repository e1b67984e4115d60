"""How long a context `config.json` and `max_model_len` give, in the router as in the engine."""

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.configs import config, read

from protocol.errors import CheckpointError, SettingsError
from protocol.text.context import longest_context
from protocol.text.tokenizer import Tokenizer

FILE = Path("config.json")
QWEN_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        # Qwen2.5 with YaRN as its card says; with what transformers 5 makes of it; Qwen3's card.
        ({"max_position_embeddings": 32768, "rope_scaling": QWEN_YARN}, 131_072),
        ({"max_position_embeddings": 32768, "rope_parameters": QWEN_YARN}, 131_072),
        ({"max_position_embeddings": 40960, "rope_scaling": QWEN_YARN}, 131_072),
        # The original outside the rope goes first; without a factor the two lengths give it.
        (
            {
                "max_position_embeddings": 131_072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "yarn", "factor": 32.0},
            },
            131_072,
        ),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 32768},
            },
            131_072,
        ),
        # Vicuna 1.5 16k; the same where the extended length is written too.
        ({"max_position_embeddings": 4096, "rope_scaling": LINEAR}, 16_384),
        (
            {
                "max_position_embeddings": 16_384,
                "rope_scaling": LINEAR | {"original_max_position_embeddings": 4096},
            },
            16_384,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        # Trained for the length they name: Llama 3.1, Phi-3 (whose type was "yarn" once), Gemma 3.
        (
            {"max_position_embeddings": 131_072, "rope_scaling": {"type": "llama3", "factor": 8}},
            131_072,
        ),
        (
            {
                "max_position_embeddings": 131_072,
                "rope_scaling": {"type": "yarn", "factor": 32.0, "long_factor": [1.0]},
            },
            131_072,
        ),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131_072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            131_072,
        ),
        (
            {
                "max_position_embeddings": 65_536,
                "rope_parameters": {
                    "full_attention": QWEN_YARN | {"factor": 2.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            65_536,
        ),
        ({"max_position_embeddings": 2048.0, "rope_scaling": None, "rope_parameters": {}}, 2048),
    ],
)
def test_a_rope_extends_the_context_as_the_models_card_says(
    changes: dict[str, Any], expected: int
) -> None:
    assert longest_context(FILE, {"model_type": "qwen2", **changes}) == expected


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "max_position_embeddings"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": 2048, "rope_scaling": LINEAR | {"factor": -1}}, "factor"),
        ({"max_position_embeddings": 2048, "rope_scaling": LINEAR | {"factor": "4"}}, "factor"),
    ],
)
def test_what_gives_no_length_is_refused_by_name(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {word} is"):
        longest_context(FILE, changes)


def test_router_and_engine_cut_the_context_alike(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    raw = config("qwen2", max_position_embeddings=32768, rope_parameters=QWEN_YARN)
    for asked, expected in ((None, 131_072), (4096, 4096), (131_072, 131_072)):
        got = read(tmp_path, raw, max_model_len=asked).max_context_tokens
        tokenizer = Tokenizer.load(tmp_path, max_model_len=asked)
        assert got == tokenizer.max_context_tokens == expected


def test_a_length_beyond_the_model_is_refused_and_says_how_it_grows(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, max_context_tokens=256)
    for load in (
        lambda: Tokenizer.load(tmp_path, max_model_len=257),
        lambda: read(tmp_path, config(max_position_embeddings=256), max_model_len=257),
    ):
        with pytest.raises(SettingsError, match=r"max_model_len: 257: .* 256 tokens.*rope_scaling"):
            load()
