"""What a checkpoint's `generation_config.json` says a request means that does not say itself.

Read as vLLM reads it: `do_sample`, `max_length` and every other key change nothing here. The ends
of a text, also in that file, are read by `protocol.text.tokenizer`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.text.json_fields import whole
from protocol.text.text_config import read_json_object_if_there

log = logging.getLogger(__name__)


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
WHOLE = frozenset({"top_k", "max_new_tokens"})


def read_sampling_defaults(path: Path) -> SamplingDefaults:
    """Of the checkpoint in `path`. A value that no request could ask for is told and left out."""
    file = path / "generation_config.json"
    given = read_json_object_if_there(file)
    named = {key: given[key] for key in RANGES if given.get(key) is not None}
    named |= {key: whole(named[key]) for key in WHOLE & named.keys()}
    found: dict[str, Any] = {key: one for key, one in named.items() if _may_ask(key, one)}
    if left_out := {key: repr(one) for key, one in named.items() if key not in found}:
        extra = {"file": str(file), "values": left_out}
        log.warning("sampling defaults that no request may have are left out", extra=extra)
    found["top_k"] = max(0, found.get("top_k", 0))
    return SamplingDefaults(max_tokens=found.pop("max_new_tokens", None), **found)


def _may_ask(key: str, value: object) -> bool:
    low, high = RANGES[key]
    kinds = int if key in WHOLE else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
