"""The shape of a random checkpoint: what its config.json says.

Called by `tools.make_checkpoint`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.models.families.family import ExpertForm, Family
from engine.models.families.table import FAMILIES

END_ID = 0
Rope = Mapping[str, object]
_BIASES = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "lm_head_bias")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to write. Fields that a family does not have (`lacking`) are ignored by it."""

    family: str = "llama"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    mlp: int = 128
    vocab: int = 512
    context: int = 2048
    tied: bool = False
    bias: bool = False
    """Those that a key of config.json turns on, for families that have such."""
    rope: Rope = field(default_factory=dict)
    """As in `rope_scaling`, with `rope_type`; empty: default."""
    legacy_rope: bool = False
    """Write `rope_scaling` and `rope_theta` (transformers 4) instead of `rope_parameters`."""
    rope_theta: float = 10_000.0
    window: int | None = None
    window_from_layer: int = 0
    num_experts: int = 4
    experts_per_token: int = 2
    expert_mlp: int = 48
    """Features of an expert, where its size has a key of its own; of the shared one too."""
    expert_form: ExpertForm | None = None
    """None: as most checkpoints of the family have it."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Keys of config.json that go before all others."""
    shard_bytes: int | None = None
    eos_token_ids: tuple[int, ...] = (END_ID,)
    seed: int = 0

    def config(self) -> dict[str, object]:
        """config.json."""
        family = FAMILIES[self.family]
        config: dict[str, object] = {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            family.norms.eps_key: 1e-6,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "pad_token_id": None,
            "eos_token_id": self.eos_token_ids[0] if self.eos_token_ids else None,
            "torch_dtype": self.dtype,
        }
        config[family.activation_key] = family.defaults.get(family.activation_key, "silu")
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        for key in _BIASES:
            if key in family.keys:
                config[key] = self.bias
        if family.stateless:
            config["layer_types"] = ["attention"] * self.layers
        config |= self._window(family) | self._mixture(family) | self._rope(family)
        return config | dict(self.extra)

    def lacking(self) -> Iterator[str]:
        """Fields that the family does not have."""
        family = FAMILIES[self.family]
        mixture = family.mixture
        if family.window is None:
            yield "window"
        if family.window is None or family.window.bound in ("none", "unturned"):
            yield "window_from_layer"
        if mixture is None:
            yield from ("num_experts", "experts_per_token", "expert_form")
        if mixture is None or (mixture.size_key == "intermediate_size" and not mixture.shared):
            yield "expert_mlp"
        if family.keys.isdisjoint(_BIASES):
            yield "bias"

    def form(self) -> ExpertForm:
        mixture = FAMILIES[self.family].mixture
        return self.expert_form or (mixture.forms[0] if mixture else "each")

    def _window(self, family: Family) -> dict[str, object]:
        rule = family.window
        if rule is None or (rule.full_every and self.window is None):
            return {}
        keys: dict[str, object] = {"sliding_window": self.window}
        if rule.flag:
            keys[rule.flag] = self.window is not None
        if rule.bound in ("from", "below"):
            keys["max_window_layers"] = self.window_from_layer
        return keys

    def _mixture(self, family: Family) -> dict[str, object]:
        rule = family.mixture
        if rule is None:
            return {}
        keys: dict[str, object] = {rule.count_keys[-1]: self.num_experts}
        keys["num_experts_per_tok"] = self.experts_per_token
        if rule.size_key != "intermediate_size":
            keys[rule.size_key] = self.expert_mlp
        if rule.shared:
            keys[rule.shared.size_key] = self.expert_mlp
        if self.form() == "mxfp4":
            keys["quantization_config"] = {"quant_method": "mxfp4"}
        return keys

    def _rope(self, family: Family) -> dict[str, object]:
        if self.legacy_rope:
            return {"rope_theta": self.rope_theta, "rope_scaling": dict(self.rope) or None}
        rope = {"rope_type": "default", "rope_theta": self.rope_theta, **self.rope}
        if not family.local_rope:
            return {"rope_parameters": rope}
        local = {"rope_type": "default", "rope_theta": family.defaults["rope_local_base_freq"]}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
