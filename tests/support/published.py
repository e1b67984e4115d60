"""Configurations as published, made small: the keys stay, the sizes shrink.

`tests/parity/published_configs.json` has them as written from their published values; lists as
long as a head or as there are layers are cut there already.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from support.wrapped_shapes import WRAPPED

from engine.models.families.table import FAMILIES
from engine.models.families.wrappers import WRAPPERS
from protocol.text.text_config import TEXT_TYPES
from tools.make_checkpoint import Shape, make_checkpoint

_FILE = Path(__file__).parents[1] / "parity" / "published_configs.json"
_ALL: dict[str, Any] = json.loads(_FILE.read_text())
SERVED: dict[str, dict[str, Any]] = _ALL["served"]
REFUSED: dict[str, dict[str, Any]] = _ALL["refused"]
"""Each has its `config`, and what it is refused `for`."""
VOCAB, LAYERS, WINDOW = 512, 4, 7
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "mamba_n_heads": 2,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "head_dim": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": VOCAB,
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 28,
}  # fmt: skip
_TOWERS = {"gemma3": _SIGLIP} | {one.model_type: one.vision for one in WRAPPED.values()}


def text_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a multimodal model's config that describes its text, or the whole of another's,
    each with the `model_type` of a text."""
    text: dict[str, Any] = raw.get("text_config", raw)
    model_type = text.get("model_type", raw["model_type"])
    return text | {"model_type": TEXT_TYPES.get(model_type, model_type)}


def shrunk(raw: dict[str, Any]) -> dict[str, Any]:
    """Loads and computes in milliseconds. A window that is shorter than the context stays so; what
    is zero or null stays that."""
    if "text_config" in raw:
        small = {"text_config": _shrunk_text({"vocab_size": VOCAB, **raw["text_config"]})}
    else:
        small = _shrunk_text(raw)
    if "vision_config" in raw:
        small["vision_config"] = raw["vision_config"] | dict(_TOWERS[raw["model_type"]])
    return raw | small


def _shrunk_text(raw: dict[str, Any]) -> dict[str, Any]:
    small = {key: _SIZES[key] if value else value for key, value in raw.items() if key in _SIZES}
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    if kv_heads:
        small["num_key_value_heads"] = 4 if kv_heads == heads else min(kv_heads, 2)
    context = raw.get("max_position_embeddings", 131_072)
    if (raw.get("sliding_window") or 0) and raw["sliding_window"] < context:
        small["sliding_window"] = WINDOW
    for key in raw.keys() & {"eos_token_id", "bos_token_id", "pad_token_id"}:
        ids = raw[key]
        small[key] = [one % VOCAB for one in ids] if isinstance(ids, list) else ids and ids % VOCAB
    rope = raw.get("rope_scaling")
    if rope:  # as many factors as pairs of dims turn
        num_pairs = int(8 * raw.get("partial_rotary_factor", 1.0))
        lists: dict[str, Any] = {
            key: value[:num_pairs] for key, value in rope.items() if isinstance(value, list)
        }
        lists |= {"mrope_section": [2, 3, 3]} if "mrope_section" in rope else {}
        small["rope_scaling"] = rope | lists
    return raw | small


def write_published(path: Path, raw: dict[str, Any]) -> None:
    """A checkpoint of random weights with `raw` as its config.json, unchanged."""
    text, wrapper = text_of(raw), WRAPPERS.get(raw["model_type"])
    family = FAMILIES[text["model_type"]]
    tied = family.defaults.get("tie_word_embeddings", wrapper is not None and wrapper.tied)
    tied = text.get("tie_word_embeddings", raw.get("tie_word_embeddings", tied))
    extra = {**family.defaults, "tie_word_embeddings": tied, "rope_parameters": None, **text}
    make_checkpoint(path, Shape(family=family.model_type, extra=extra))
    if wrapper is not None:
        file = path / "model.safetensors"
        tensors = {
            name.replace("model.", "model.language_model."): tensor
            for name, tensor in load_file(file).items()
        }
        save_file(tensors, file, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(raw))
