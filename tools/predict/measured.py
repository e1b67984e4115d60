"""Milliseconds of a step's parts as `bench.gpu` recorded them, by tokens of the step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.predict.shape import ModelShape

Measured = Mapping[str, Mapping[str, float]]
COMMITTED = Path(__file__).parents[2] / "bench" / "results" / "gpu.jsonl"
_STEPS = ("breakdown_decode_b", "breakdown_prefill_")


def committed(shape: ModelShape) -> Measured:
    """Empty before the first hour on a GPU."""
    return read_measured(COMMITTED, shape) if COMMITTED.exists() else {}


def read_measured(file: Path, shape: ModelShape) -> Measured:
    """Of each step the last that was recorded of this shape: `results/gpu.jsonl` of the folder that
    `tools/first_gpu.sh profile` writes. Raises ValueError where none was, OSError without it."""
    steps: dict[str, dict[str, float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        tokens = _tokens(entry["conditions"], shape)
        if tokens and "failed" not in entry["results"]:
            steps[tokens] = entry["results"]
    if not steps:
        raise ValueError(
            f"{file}: no step broken down of {shape.layers} layers of {shape.hidden}, which "
            "`tools/first_gpu.sh profile` measures on a GPU"
        )
    return steps


def _tokens(conditions: Mapping[str, Any], shape: ModelShape) -> str:
    """Of the step that was broken down; "" of any other part, and of another shape."""
    part, size = conditions["part"], (conditions.get("layers"), conditions.get("hidden"))
    if size != (shape.layers, shape.hidden):
        return ""
    return next((part.removeprefix(start) for start in _STEPS if part.startswith(start)), "")
