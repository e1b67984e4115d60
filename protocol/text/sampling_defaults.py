"""What a checkpoint's `generation_config.json` says a request means that does not say itself.

Read as vLLM reads it: `do_sample`, `max_length` and every other key change nothing here. The ends
of a text, also in that file, are read by `protocol.text.tokenizer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import CheckpointError
from protocol.text.text_config import read_json_object_if_there


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """The defaults of these fields are OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """No ceiling: a request may ask for more. None: whatever the endpoint gives."""


RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "max_new_tokens": (1, 2**31 - 1),
}
"""What a request may ask for, by the file's names."""


def read_sampling_defaults(path: Path) -> SamplingDefaults:
    """Of the checkpoint in `path`. CheckpointError names a value no request could ask for."""
    file = path / "generation_config.json"
    given = read_json_object_if_there(file)
    found = {key: _number(file, key, given[key]) for key in RANGES if given.get(key) is not None}
    plain = SamplingDefaults()
    max_tokens = found.get("max_new_tokens")
    return SamplingDefaults(
        temperature=found.get("temperature", plain.temperature),
        top_p=found.get("top_p", plain.top_p),
        top_k=max(0, int(found.get("top_k", plain.top_k))),
        min_p=found.get("min_p", plain.min_p),
        repetition_penalty=found.get("repetition_penalty", plain.repetition_penalty),
        max_tokens=None if max_tokens is None else int(max_tokens),
    )


def _number(file: Path, key: str, value: object) -> float:
    low, high = RANGES[key]
    whole = isinstance(low, int)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "whole number" if whole else "number"
        rule = f"a {kind} from {low:g} to {high}; --generation-config none leaves the file out"
        raise CheckpointError(f"{file}: {key} is {value!r}, not {rule}")
    return value
