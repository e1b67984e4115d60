"""The model families, as tables over shared parts: a new Llama-like family is a row here.

Read by `engine.config`. A row says which parts a layer has, where its tensors are in the
checkpoint, and what an absent key of `config.json` means (transformers' defaults).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BiasRule = Literal["never", "always", "attention_bias", "mlp_bias"]
"""The last two: as that key of config.json says."""
WindowRule = Literal["never", "every_layer", "flagged"]
"""`flagged`: when `use_sliding_window`, on the layers that `layer_types` or
`max_window_layers` name (Qwen); `every_layer`: whenever `sliding_window` is a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    model_type: str
    architecture: str
    qkv_bias: BiasRule = "never"
    output_bias: BiasRule = "never"
    mlp_bias: BiasRule = "never"
    qk_norm: bool = False
    """RMSNorm over each head of q and k before the rotation."""
    window: WindowRule = "never"
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What absent keys mean; a key neither here nor in the checkpoint is missing."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of config.json that change what this family computes."""
        rules = {self.qkv_bias, self.output_bias, self.mlp_bias} - {"never", "always"}
        windows: dict[WindowRule, set[str]] = {
            "never": set(),
            "every_layer": {"sliding_window"},
            "flagged": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"},
        }
        return frozenset(rules | windows[self.window])


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults={"num_key_value_heads": None, "head_dim": None},
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    window="every_layer",
    defaults={"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
)
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    qkv_bias="always",
    window="flagged",
    defaults={"num_key_value_heads": 32, "head_dim": None, **_QWEN_WINDOW},
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    window="flagged",
    defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOW},
)

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """One linear we run, made of tensors of the checkpoint stacked along their output rows."""

    name: str
    sources: tuple[str, ...]


LAYER_LINEARS = (
    Merged(name="qkv", sources=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Merged(name="output", sources=("self_attn.o_proj",)),
    Merged(name="gate_up", sources=("mlp.gate_proj", "mlp.up_proj")),
    Merged(name="down", sources=("mlp.down_proj",)),
)
LAYER_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
LAYER_PREFIX = "model.layers.{layer}."
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"
