"""What a family of models is, as a value: which parts its layers have, how they are named.

The rows are in `engine.models.families.table`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.models.route import Softmax
from engine.ops.contract import Activation

BiasRule = Literal[
    "never", "always", "attention_bias", "attention_out_bias", "qkv_bias", "mlp_bias",
    "use_bias", "use_qkv_bias", "lm_head_bias",
]  # fmt: skip
"""All but the first two: as that key of config.json says."""
ParallelRule = Literal["never", "always", "use_parallel_residual"]
"""MLP and attention take the same norm's answer, and the residual both of theirs; the last: where
that key is true."""
QkNorm = Literal["none", "head", "full", "layer", "layers"]
"""RMS norm of q and k before the rotation: each head alone, or all heads as one row. Layer norms
of each head with a weight of its own: one tensor (Cohere), or one for each head (StableLM)."""

ExpertForm = Literal["each", "stacked", "mxfp4", "granite"]
"""How experts lie in a checkpoint: a tensor per expert and linear, as most are published; all
experts of a layer in one tensor, as GPT-OSS is, and the others where transformers 5 saved them in
its own form; stacked MXFP4 blocks and scales; stacked under the names of Granite."""
Unturned = Literal["never", "no_rope_layers", "position_embedding_type", "full_attention"]
"""Layers without a rope: as that key of config.json says, or those without a window in a model that
has windows (EXAONE 4)."""
_UNTURNED_KEYS: Mapping[Unturned, frozenset[str]] = {
    "no_rope_layers": frozenset({"no_rope_layers", "no_rope_layer_interval"}),
    "position_embedding_type": frozenset({"position_embedding_type"}),
}
NO_HEADS: Mapping[str, object] = {"num_key_value_heads": None, "head_dim": None}
GRANITE_SCALES = frozenset(
    {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Tensors of the norms around attention and MLP, below a layer's prefix; None: no norm."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    plus_one: bool = False
    """The stored weight is that of the norm less one, q's and k's norms included (Gemma)."""
    centred: bool = False
    """Layer norms, not RMS norms."""
    bias: bool = False
    eps_key: Literal["rms_norm_eps", "layer_norm_eps", "norm_epsilon"] = "rms_norm_eps"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """Which layers see `sliding_window` tokens only, where `sliding_window` is a number."""

    flag: str | None = None
    """Key that must be true for any window."""
    typed: bool = False
    """`layer_types` names each layer's kind; the rest of the rule holds where it is absent."""
    full_every: int | None = None
    """Every so manieth layer sees all."""
    full_every_key: str | None = None
    """Key that goes before `full_every`."""
    bound: Literal["none", "from", "below", "unturned"] = "none"
    """Only layers from, or below, `max_window_layers`; only those that `no_rope_layers` names."""

    @property
    def keys(self) -> frozenset[str]:
        names = {"sliding_window", self.flag, self.full_every_key}
        names |= {"layer_types"} if self.typed else set()
        names |= {"max_window_layers"} if self.bound in ("from", "below") else set()
        return frozenset(name for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpRule:
    """An MLP, below a layer's prefix or that of its experts."""

    size_key: str = "intermediate_size"
    block: str = "mlp."
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    """One name: gate, then up, are one tensor, or of an MLP without a gate up alone."""
    gated: bool = True
    down: str = "down_proj"
    gate: str | None = None
    """Of an expert that all tokens share: it is weighed by the sigmoid of this linear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRule:
    """Experts in place of the MLP."""

    size_key: str
    """Features of one expert."""
    count_keys: tuple[str, ...] = ("num_experts",)
    """How many there are, by the first that the file has; some families have two names for it."""
    softmax: Softmax = "before"
    renormalise: Literal["never", "always", "norm_topk_prob"] = "never"
    shared: MlpRule | None = None
    """An expert for every token; one of size 0 is not there."""
    stepped: bool = False
    """`decoder_sparse_step` and `mlp_only_layers` leave some layers dense."""
    forms: tuple[ExpertForm, ...] = ("each", "stacked")
    block: str = "mlp."
    """Where router and experts are."""
    stacked_block: str = "mlp."
    """Where they are in the forms "stacked" and "mxfp4"."""
    router: str = "gate"
    stacked_router: str | None = None
    """Its name in the form "stacked", where it is another."""
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    biased: bool = False
    """Router and experts have biases."""
    transposed: bool = False
    """Stacked experts lie as [E, K, N] (GPT-OSS); blocks and scales never do."""
    interleaved: bool = False
    """Rows of gate and up take turns (GPT-OSS)."""

    @property
    def keys(self) -> frozenset[str]:
        names = {self.size_key, *self.count_keys, "num_experts_per_tok"}
        names |= {"router_jitter_noise"} if self.softmax == "sparsemixer" else set()
        names |= {"norm_topk_prob"} if self.renormalise == "norm_topk_prob" else set()
        names |= {self.shared.size_key} if self.shared else set()
        names |= {"decoder_sparse_step", "mlp_only_layers"} if self.stepped else set()
        return frozenset(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    model_type: str
    architecture: str
    qkv_bias: BiasRule = "never"
    output_bias: BiasRule = "never"
    mlp_bias: BiasRule = "never"
    qk_norm: QkNorm = "none"
    norms: Norms = field(default_factory=Norms)
    fused: bool = False
    """q, k and v are one tensor `qkv_proj` in the checkpoint."""
    sinks: bool = False
    window: WindowRule | None = None
    mixture: MixtureRule | None = None
    activation: Activation | None = None
    """None: as `activation_key` says, which else is not read."""
    activation_key: Literal["hidden_act", "hidden_activation"] = "hidden_act"
    embedding_sqrt: bool = False
    """Embeddings grow by sqrt(hidden_size), itself rounded to the weights' dtype (Gemma)."""
    local_rope: bool = False
    """Layers with a window have a rope of their own."""
    partial_rotary: bool = False
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    options: frozenset[str] = frozenset()
    """Numbers of config.json that this family has, of those `engine.models.config` knows."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys that are understood with this value only."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What keys mean that are absent, or null; a key neither here nor in the file is missing."""
    unturned: Unturned = "never"
    mlp: MlpRule = field(default_factory=MlpRule)
    """Of dense layers."""
    activation_aliases: Mapping[str, str] = field(default_factory=dict)
    stateless: bool = False
    """`layer_types` must say that every layer is attention: others keep a state (Granite 4)."""
    interleaved_rope: bool = False
    """Dims 2 i and 2 i + 1 of a head turn together (GLM, Cohere)."""
    qk_norm_key: Literal["use_qk_norm", "qk_layernorm"] | None = None
    """Key that must be true for `qk_norm`."""
    parallel: ParallelRule = "never"
    head_bias: BiasRule = "never"

    @property
    def keys(self) -> frozenset[str]:
        """Keys of config.json that change what this family computes."""
        flags = {self.qkv_bias, self.output_bias, self.mlp_bias, self.head_bias, self.parallel}
        flags -= {"never", "always"}
        return (
            frozenset({*flags, *self.fixed, self.activation_key, self.norms.eps_key})
            | ({self.qk_norm_key} if self.qk_norm_key else set())
            | self.options
            | (self.window.keys if self.window else frozenset())
            | (self.mixture.keys if self.mixture else frozenset())
            | ({"partial_rotary_factor"} if self.partial_rotary else set())
            | ({"rope_local_base_freq"} if self.local_rope else set())
            | _UNTURNED_KEYS.get(self.unturned, frozenset())
            | ({"layer_types"} if self.stateless else set())
            | {self.mlp.size_key}
            | ({"quantization_config"} if self.mixture and "mxfp4" in self.mixture.forms else set())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A multimodal model of which only the text part, described by `text_config`, is served."""

    model_type: str
    architecture: str
    keys: frozenset[str]
    """Keys beside `text_config` that describe what is not served."""
    tied: bool = False
    """What an absent `tie_word_embeddings` means; a head that is stored and differs is not tied."""
    flat: bool = False
    """Published with the text's keys beside the others, without a `text_config`."""
