"""Configurations as published, made small: the keys stay, the sizes shrink.

`tests/parity/published_configs.json` has them as written from their published values; lists as
long as a head or as there are layers are cut there already.
"""

import json
from pathlib import Path
from typing import Any

from engine.models.families import FAMILIES
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


def shrunk(raw: dict[str, Any]) -> dict[str, Any]:
    """Loads and computes in milliseconds. A window that is shorter than the context stays so; what
    is zero or null stays that."""
    small = {key: _SIZES[key] if value else value for key, value in raw.items() if key in _SIZES}
    heads, kv_heads = raw["num_attention_heads"], raw.get("num_key_value_heads")
    if kv_heads:
        small["num_key_value_heads"] = 4 if kv_heads == heads else min(kv_heads, 2)
    if (raw.get("sliding_window") or 0) and raw["sliding_window"] < raw["max_position_embeddings"]:
        small["sliding_window"] = WINDOW
    for key in raw.keys() & {"eos_token_id", "bos_token_id", "pad_token_id"}:
        ids = raw[key]
        small[key] = [one % VOCAB for one in ids] if isinstance(ids, list) else ids and ids % VOCAB
    rope = raw.get("rope_scaling")
    if rope:  # as many factors as pairs of dims turn
        num_pairs = int(8 * raw.get("partial_rotary_factor", 1.0))
        lists = {key: value[:num_pairs] for key, value in rope.items() if isinstance(value, list)}
        small["rope_scaling"] = rope | lists
    return raw | small


def write_published(path: Path, raw: dict[str, Any]) -> None:
    """A checkpoint of random weights with `raw` as its config.json, unchanged."""
    family = FAMILIES[raw["model_type"]]
    tied = raw.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False))
    extra = {"tie_word_embeddings": tied, "rope_parameters": None, **raw}
    make_checkpoint(path, Shape(family=family.model_type, extra=extra))
    (path / "config.json").write_text(json.dumps(raw))
