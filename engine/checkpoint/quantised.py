"""Why a checkpoint's tensors do not fit: that they are quantised, and by which method.

For a model that could not be made: a file of a method may lie beside weights that are floats again.
What config.json says itself is for `engine.models.config_keys`.
"""

from collections.abc import Collection
from pathlib import Path

from protocol.errors import CheckpointError
from protocol.text.text_config import read_json_object_if_there

_SIDE_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
_KEYS = ("quant_method", "quant_algo", "kv_cache_quant_algo", "bits", "w_bit", "version")
_ENDS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "FP8 in blocks",
    ".weight_scale": "FP8 or FP4",
    ".scales": "MLX, GPTQ or AWQ",
}


def explained(error: CheckpointError, path: Path, names: Collection[str]) -> CheckpointError:
    """`error`, or one that names the method by which the weights in `path` are quantised."""
    method = _by_side_file(path) or _by_names(names)
    if method is None:
        return error
    return CheckpointError(
        f"{path}: its weights are quantised: {method}, which Baton does not read; take the model "
        f"without quantisation ({error})"
    )


def _by_side_file(path: Path) -> str | None:
    for file, method in _SIDE_FILES.items():
        if said := read_json_object_if_there(path / file):
            inner = said.get("quantization")
            said |= inner if isinstance(inner, dict) else {}
            values = [f"{key} {said[key]}" for key in _KEYS if said.get(key) is not None]
            return f"{method} by {file} ({', '.join(values)})"
    return None


def _by_names(names: Collection[str]) -> str | None:
    found = ((name, end) for end in _ENDS for name in names if name.endswith(end))
    return next((f"{_ENDS[end]} by the name of {name}" for name, end in found), None)
