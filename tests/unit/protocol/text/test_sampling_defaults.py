import json
from pathlib import Path
from typing import Any

import pytest

from protocol.text.sampling_defaults import SamplingDefaults, read_sampling_defaults

PUBLISHED: dict[str, tuple[dict[str, Any], SamplingDefaults]] = {
    "Llama 3.2": (
        {"bos_token_id": 128000, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        SamplingDefaults(temperature=0.6, top_p=0.9),
    ),
    "Qwen 3": (
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "pad_token_id": 1},
        SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95),
    ),
    "Qwen 2.5": (
        {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        SamplingDefaults(repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20),
    ),
    "Gemma 3": (
        {"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "top_p": 0.95},
        SamplingDefaults(top_k=64, top_p=0.95),
    ),
    "greedy by do_sample, which vLLM leaves out": ({"do_sample": False}, SamplingDefaults()),
    "a length": ({"max_new_tokens": 512, "max_length": 4096}, SamplingDefaults(max_tokens=512)),
    "nulls": ({"temperature": None, "top_k": None, "max_new_tokens": None}, SamplingDefaults()),
    "a whole number with a point": ({"top_k": 50.0}, SamplingDefaults(top_k=50)),
    "all of the vocabulary": ({"top_k": -1, "temperature": 1}, SamplingDefaults()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_are_read_as_vllm_reads_them(tmp_path: Path, name: str) -> None:
    content, expected = PUBLISHED[name]
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_sampling_defaults(tmp_path) == expected


def test_a_checkpoint_without_the_file_has_openais_defaults(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "0.6"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", 1e400),
        ("top_p", 0),
        ("top_p", [0.9]),
        ("top_k", 2.5),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 1e-38),
        ("max_new_tokens", 0),
    ],
)
def test_a_value_no_request_could_ask_for_is_told_once_and_left_out(
    tmp_path: Path, key: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value, "pad_token_id": 0}))
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    (told,) = caplog.records
    assert list(told.__dict__["values"]) == [key]
