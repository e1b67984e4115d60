"""Small multimodal checkpoints, of which the text is served: a text model's, with the names and
the `config.json` of what wraps it. They have no tensors of a vision tower: none is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.family_shapes import FULL, GROWTH, SHAPES, SLIDE, YARN, YARN_16

from engine.models.families.wrappers import WRAPPERS
from tools.make_checkpoint import Shape, make_checkpoint

_PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_TOWER = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 14,
    "out_hidden_size": 64, "embed_dim": 16, "mlp_ratio": 1, "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
}  # fmt: skip
_SECTIONS = {"mrope_section": [2, 3, 3]}
_INTERLEAVED = _SECTIONS | {"mrope_interleaved": True}


@dataclass(frozen=True, kw_only=True)
class Wrapped:
    """`shape` within the multimodal model of this `model_type`."""

    model_type: str
    shape: Shape
    body: str = "model.language_model."
    """Goes before the names of the text's tensors, the head's excepted."""
    head: str = "lm_head.weight"
    flat: bool = False
    """The text's keys lie beside the others."""
    vision: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        wrapper, text = WRAPPERS[self.model_type], self.shape.config()
        del text["architectures"]
        outer = {
            "architectures": [wrapper.architecture], "model_type": self.model_type,
            "vision_config": dict(self.vision), "tie_word_embeddings": self.shape.tied,
        }  # fmt: skip
        return text | outer if self.flat else outer | {"text_config": text}

    def name_of(self, tensor: str) -> str:
        body = self.body + tensor.removeprefix("model.")
        return self.head if tensor == "lm_head.weight" else body


WRAPPED = {
    "mistral3": Wrapped(
        model_type="mistral3", vision=_PIXTRAL, body="language_model.model.",
        head="language_model.lm_head.weight", shape=Shape(family="mistral", head_dim=32),
    ),
    "mistral3-of-ministral3": Wrapped(
        model_type="mistral3", vision=_PIXTRAL,
        shape=Shape(
            family="ministral3", head_dim=16, tied=True, context=256, rope=GROWTH | YARN_16
        ),
    ),
    "qwen2-vl": Wrapped(
        model_type="qwen2_vl", vision=_QWEN_TOWER, body="model.", flat=True,
        shape=Shape(
            family="qwen2_vl_text", legacy_rope=True, rope={"type": "mrope", **_SECTIONS}
        ),
    ),
    "qwen2-vl-window-tied": Wrapped(
        model_type="qwen2_vl", vision=_QWEN_TOWER,
        shape=Shape(
            family="qwen2_vl_text", window=9, window_from_layer=1, tied=True, rope=_SECTIONS
        ),
    ),
    "qwen2.5-vl": Wrapped(
        model_type="qwen2_5_vl", vision=_QWEN_TOWER, body="model.", flat=True,
        shape=Shape(
            family="qwen2_5_vl_text", legacy_rope=True, rope={"type": "mrope", **_SECTIONS}
        ),
    ),
    "qwen2.5-vl-yarn-named-layers": Wrapped(
        model_type="qwen2_5_vl", vision=_QWEN_TOWER,
        shape=Shape(
            family="qwen2_5_vl_text", context=256, rope=YARN | _SECTIONS, tied=True, window=9,
            extra={"layer_types": [FULL, SLIDE]},
        ),
    ),
    "qwen3-vl": Wrapped(
        model_type="qwen3_vl", vision=_QWEN_TOWER,
        shape=Shape(family="qwen3_vl_text", head_dim=16, rope=_INTERLEAVED, rope_theta=5e6),
    ),
    "qwen3-vl-legacy-rope-tied-bias": Wrapped(
        model_type="qwen3_vl", vision=_QWEN_TOWER,
        shape=Shape(
            family="qwen3_vl_text", head_dim=16, tied=True, bias=True, legacy_rope=True,
            rope={"rope_type": "default", **_INTERLEAVED},
        ),
    ),
}  # fmt: skip
_LATER = {
    "gemma-legacy-activation-bias", "olmo3-named-layers-legacy-rope", "exaone4-all-layers-turn",
    "smollm3-named-layers-windows-bias", "seed-oss-output-bias-tied", "ministral-named-layers",
    "ministral3-window-tied", "granite-moe-stacked-bias", "granite-moe-shared-none",
    "mistral3-of-ministral3", "qwen2-vl", "qwen2-vl-window-tied", "qwen2.5-vl-yarn-named-layers",
    "qwen3-vl-legacy-rope-tied-bias",
    "glm", "glm-share-of-the-rope", "glm4-yarn", "cohere", "cohere2", "starcoder2-window-no-bias",
    "stablelm", "phimoe-long-window-stacked",
}  # fmt: skip
"""Like another in most: for the long tests."""
_CACHED_AS_ANOTHER = {
    "gemma", "olmo3", "seed-oss", "ministral", "granite-moe", "granite-moe-shared", "granite-4",
    "glm4", "cohere-norms-of-heads", "starcoder2", "stablelm-parallel-norms-of-heads", "mistral3",
    "qwen2.5-vl", "qwen3-vl",
}  # fmt: skip
"""Their KV, windows and ropes are another's: for the long tests of what moves or grows a cache."""


def _all(*, long: set[str]) -> list[Any]:
    names = (*SHAPES, *WRAPPED)
    return [pytest.param(name, marks=pytest.mark.long if name in long else ()) for name in names]


ALL = _all(long=_LATER)
OF_CACHES = _all(long=_LATER | _CACHED_AS_ANOTHER)


def write_shape(path: Path, name: str) -> Shape:
    """The checkpoint of that name in `SHAPES` or `WRAPPED`."""
    wrapped = WRAPPED.get(name)
    shape = SHAPES[name] if wrapped is None else wrapped.shape
    make_checkpoint(path, shape)
    if wrapped is not None:
        file = path / "model.safetensors"
        tensors = {wrapped.name_of(name): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
        (path / "config.json").write_text(json.dumps(wrapped.config()))
    return shape
