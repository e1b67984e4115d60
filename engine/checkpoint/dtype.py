"""Which dtype a model runs in, weights and KV: by default its checkpoint's, as vLLM chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.checkpoint.safetensors import Checkpoint
from engine.models.model import Dtype
from protocol.errors import CheckpointError, SettingsError

NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Families whose activations leave its range; the list is vLLM's."""
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenDtype:
    dtype: Dtype
    why: str
    loses: bool = False
    """Fewer digits than those stored, and no wider range was needed."""


def stored_dtype(path: Path, config: Mapping[str, object]) -> str:
    """That `config`, of config.json, names, or that of most of the weights; "": neither says."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if named := part.get("dtype") or part.get("torch_dtype"):
            return str(named).removeprefix("torch.")
    try:
        tensors = Checkpoint(path).tensors.values()
    except CheckpointError:
        return ""  # whoever reads the weights says what is wrong
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
    return _NAMES.get(max(sizes, key=lambda name: sizes[name], default=""), "")


def choose_dtype(
    asked: Literal["auto"] | Dtype, *, stored: str, model_type: str, on_gpu: bool
) -> ChosenDtype:
    """What is `asked` for, or for "auto" what is `stored`: float16 on a GPU only, float32 as
    bfloat16. Raises SettingsError for float16 where the family has no use of it."""
    if asked == "float16" and model_type in NO_FLOAT16:
        raise SettingsError(f"dtype: float16: out of range for {model_type}; take bfloat16")
    if asked != "auto":
        return ChosenDtype(dtype=asked, why="asked for")
    fits = model_type not in NO_FLOAT16
    if stored == "float16" and fits and on_gpu:
        return ChosenDtype(dtype="float16", why="the checkpoint's")
    if stored == "float16" and fits:
        why = "the checkpoint is in float16, which the CPU's kernels have not"
        return ChosenDtype(dtype="bfloat16", why=why, loses=True)
    return ChosenDtype(dtype="bfloat16", why=f"the checkpoint is in {stored or 'no one dtype'}")
