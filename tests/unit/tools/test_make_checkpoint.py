"""The command line of the checkpoint maker: what it refuses, it refuses before it writes."""

import sys
from pathlib import Path

import pytest

from engine.models.config import read_config
from tools.make_checkpoint import main


def run(monkeypatch: pytest.MonkeyPatch, path: Path, line: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_checkpoint", str(path), *line.split()])
    main()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--family llama --window 16", "--window: llama has none"),
        ("--family mistral --window-from-layer 1", "--window-from-layer: mistral has none"),
        ("--family qwen2_moe --window 16", "--window: no layer of this shape has one"),
        ("--family mistral --window 2048", "--window: no layer of this shape has one"),
        ("--family llama --num-experts 8", "--num-experts: llama has none"),
        ("--family llama --experts-per-token 2", "--experts-per-token: llama has none"),
        ("--family qwen3 --expert-form each", "--expert-form: qwen3 has none"),
        ("--family mixtral --expert-mlp 48", "--expert-mlp: mixtral has none"),
        ("--family qwen2 --bias", "--bias: qwen2 has none"),
        ("--family mixtral --expert-form mxfp4", "expert_form: mixtral has each or stacked"),
        ("--family gpt_oss --expert-form each", "expert_form: gpt_oss has stacked or mxfp4"),
        ("--family gpt_oss --expert-form mxfp4 --mlp 80", "intermediate_size = 80 must be a"),
        ("--heads 3 --kv-heads 2", "error: config.json: num_key_value_heads must divide"),
        ("--hidden 2 --heads 4", "head_dim must be even and above 0"),
        ("--vocab 10", "vocab: 10 is below"),
        ("--rope 3", "'3' is not a JSON object"),
    ],
)
def test_what_would_not_load_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    words: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path / "out", line)
    assert caught.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_flags_of_the_family_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "--family qwen2_moe --window 16 --window-from-layer 1 --num-experts 8 --expert-mlp 32"
    run(monkeypatch, tmp_path, f"{line} --tied")
    config = read_config(tmp_path)
    assert config.windows == (16, None)
    assert config.mixture is not None
    assert (config.mixture.num_experts, config.mixture.size) == (8, 32)
    assert config.tied_embeddings
