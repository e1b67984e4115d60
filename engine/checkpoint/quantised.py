"""Why a checkpoint's tensors do not fit: that they are quantised, by which method.

Looked for when a model could not be made only: a file of a method may lie beside weights that are
floats again. What config.json itself says is for `engine.models.config`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from protocol.errors import CheckpointError
from protocol.text.text_config import read_json_object_if_there

_SIDE_FILES: Mapping[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "quantize_config.json": ("GPTQ", (("quant_method",), ("bits",), ("w_bit",))),
    "quant_config.json": ("AWQ", (("quant_method",), ("w_bit",), ("bits",), ("version",))),
    "hf_quant_config.json": (
        "ModelOpt",
        (("quantization", "quant_algo"), ("quantization", "kv_cache_quant_algo")),
    ),
    "config.json": (
        "compressed-tensors",
        (("compression_config", "format"), ("compression_config", "quant_method")),
    ),
}
"""By file: the method, and the keys whose values tell more of it."""
_ENDS = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes (nf4)",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes (fp4)",
    ".SCB": "bitsandbytes (int8)",
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
    for file, (method, keys) in _SIDE_FILES.items():
        said = read_json_object_if_there(path / file)
        if file == "config.json" and not said.get("compression_config"):
            continue
        if said:
            values = [f"{key[-1]} {value}" for key in keys if (value := _at(said, key)) is not None]
            return f"{method} by {file} ({', '.join(values)})" if values else f"{method} by {file}"
    return None


def _at(value: Any, keys: tuple[str, ...]) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _by_names(names: Collection[str]) -> str | None:
    for end, method in _ENDS.items():
        found = next((name for name in names if name.endswith(end)), None)
        if found is not None:
            return f"{method} by the name of {found}"
    return None
