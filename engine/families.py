"""The model families, as tables over shared parts: a new family of known parts is a row here.

Read by `engine.config` and `engine.tensors`. A row says which parts a layer has, how they are
named in the checkpoint, and what an absent key of `config.json` means (transformers' defaults).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.ops import Activation

BiasRule = Literal["never", "always", "attention_bias", "qkv_bias", "mlp_bias"]
"""The last three: as that key of config.json says."""
QkNorm = Literal["none", "head", "full"]
"""RMS norm of q and k before the rotation: each head alone, or all heads as one row."""

ExpertForm = Literal["each", "stacked", "mxfp4"]
"""How experts lie in a checkpoint: a tensor per expert and linear, as most are published; all
experts of a layer in one tensor, as GPT-OSS is, and the others where transformers 5 saved them in
its own form; stacked MXFP4 blocks and scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Tensors of the norms around attention and MLP, below a layer's prefix; None: no norm."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    plus_one: bool = False
    """The stored weight is that of the norm less one, q's and k's norms included (Gemma)."""


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
    bound: Literal["none", "from", "below"] = "none"
    """Only layers from, or below, `max_window_layers`."""

    @property
    def keys(self) -> frozenset[str]:
        names = {"sliding_window", self.flag, self.full_every_key}
        names |= {"layer_types"} if self.typed else set()
        names |= {"max_window_layers"} if self.bound != "none" else set()
        return frozenset(name for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRule:
    """Experts in place of the MLP."""

    size_key: str
    """Features of one expert."""
    count_key: str = "num_experts"
    """How many there are; transformers 5 writes and reads either name for some families."""
    softmax: Literal["before", "after"] = "before"
    """Router: softmax over all experts and then the best, or over the best only."""
    renormalise: Literal["never", "always", "norm_topk_prob"] = "never"
    shared: bool = False
    """An expert for every token, weighed by a sigmoid gate (Qwen2-MoE)."""
    stepped: bool = False
    """`decoder_sparse_step` and `mlp_only_layers` leave some layers dense."""
    forms: tuple[ExpertForm, ...] = ("each", "stacked")
    block: str = "mlp."
    """Where router and experts of the form "each" are; the others' are always in `mlp.`."""
    router: str = "gate"
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
        names = {self.size_key, "num_experts", "num_local_experts", "num_experts_per_tok"}
        names |= {"norm_topk_prob"} if self.renormalise == "norm_topk_prob" else set()
        names |= {"shared_expert_intermediate_size"} if self.shared else set()
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
    """`qkv_proj` and `gate_up_proj` are one tensor each in the checkpoint."""
    sinks: bool = False
    window: WindowRule | None = None
    mixture: MixtureRule | None = None
    activation: Activation | None = None
    """None: as `activation_key` says."""
    activation_key: Literal["hidden_act", "hidden_activation"] = "hidden_act"
    embedding_sqrt: bool = False
    """Embeddings grow by sqrt(hidden_size), itself rounded to the weights' dtype (Gemma)."""
    local_rope: bool = False
    """Layers with a window have a rope of their own."""
    partial_rotary: bool = False
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    options: frozenset[str] = frozenset()
    """Numbers of config.json that this family has, of those `engine.config` knows."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys that are understood with this value only."""
    ignored: frozenset[str] = frozenset()
    """Keys that transformers does not read for this family."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What absent keys mean; a key neither here nor in the checkpoint is missing."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of config.json that change what this family computes."""
        biases = {self.qkv_bias, self.output_bias, self.mlp_bias} - {"never", "always"}
        return (
            frozenset({*biases, *self.fixed, self.activation_key})
            | self.options
            | (self.window.keys if self.window else frozenset())
            | (self.mixture.keys if self.mixture else frozenset())
            | ({"partial_rotary_factor"} if self.partial_rotary else set())
            | ({"rope_local_base_freq"} if self.local_rope else set())
            | ({"quantization_config"} if self.mixture and "mxfp4" in self.mixture.forms else set())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A multimodal model of which only the text part, described by `text_config`, is served."""

    model_type: str
    architecture: str
    keys: frozenset[str]
    """Keys beside `text_config` that describe what is not served."""


NO_HEADS: Mapping[str, object] = {"num_key_value_heads": None, "head_dim": None}
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_UPPER_WINDOWS = WindowRule(flag="use_sliding_window", typed=True, bound="from")
_EVEN_WINDOWS = WindowRule(typed=True, full_every=2)
_GEMMA_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
    plus_one=True,
)
_GEMMA_DEFAULTS: Mapping[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    defaults=NO_HEADS,
)
MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    window=WindowRule(),
    defaults={"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
)
QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    qkv_bias="always",
    window=_UPPER_WINDOWS,
    defaults={"num_key_value_heads": 32, "head_dim": None, **_QWEN_WINDOW},
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm="head",
    window=_UPPER_WINDOWS,
    defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOW},
)
GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    norms=_GEMMA_NORMS,
    window=_EVEN_WINDOWS,
    activation_key="hidden_activation",
    embedding_sqrt=True,
    options=frozenset(
        {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
    ),
    ignored=frozenset({"hidden_act"}),
    defaults={
        **_GEMMA_DEFAULTS,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm="head",
    norms=_GEMMA_NORMS,
    window=WindowRule(typed=True, full_every=6, full_every_key="sliding_window_pattern"),
    activation_key="hidden_activation",
    embedding_sqrt=True,
    local_rope=True,
    options=frozenset({"query_pre_attn_scalar", "final_logit_softcapping"}),
    ignored=frozenset({"hidden_act"}),
    defaults={
        **_GEMMA_DEFAULTS,
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
)
PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fused=True,
    window=WindowRule(),
    partial_rotary=True,
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    fixed={"full_attn_mod": 1, "interpolate_factor": 1},
    defaults={
        "num_key_value_heads": None,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "original_max_position_embeddings": 4096,
    },
)
OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm="full",
    norms=Norms(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
    ),
    defaults={**NO_HEADS, "rms_norm_eps": 1e-5},
)
GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    options=frozenset(
        {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"}
    ),
    defaults={**NO_HEADS, "attention_multiplier": 1.0},
)
MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    window=WindowRule(),
    mixture=MixtureRule(
        size_key="intermediate_size",
        count_key="num_local_experts",
        renormalise="always",
        block="block_sparse_moe.",
        gate="w1",
        up="w3",
        down="w2",
    ),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": None,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
    },
)
_STEPPED: Mapping[str, object] = {
    "decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": False,
    "use_sliding_window": False, "sliding_window": 4096,
}  # fmt: skip
QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    qkv_bias="qkv_bias",
    window=WindowRule(flag="use_sliding_window", typed=True, full_every=2, bound="below"),
    mixture=MixtureRule(
        size_key="moe_intermediate_size", renormalise="norm_topk_prob", shared=True, stepped=True
    ),
    defaults={
        **_STEPPED, "num_key_value_heads": 16, "head_dim": None, "qkv_bias": True,
        "max_window_layers": 28, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
)  # fmt: skip
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm="head",
    window=WindowRule(flag="use_sliding_window"),
    mixture=MixtureRule(
        size_key="moe_intermediate_size", renormalise="norm_topk_prob", stepped=True
    ),
    ignored=frozenset({"max_window_layers"}),
    defaults={
        **_STEPPED, "num_key_value_heads": 4, "head_dim": None,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    },
)  # fmt: skip
GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    sinks=True,
    window=_EVEN_WINDOWS,
    mixture=MixtureRule(
        size_key="intermediate_size", count_key="num_local_experts", softmax="after",
        router="router", biased=True,
        forms=("stacked", "mxfp4"), transposed=True, interleaved=True,
    ),
    activation="swiglu_oai",
    fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    ignored=frozenset({"experts_per_token", "initial_context_length"}),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "attention_bias": True,
        "sliding_window": 128,
        "num_experts_per_tok": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OLMO2, GRANITE,
        MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS,
    )
}  # fmt: skip
WRAPPERS: Mapping[str, Wrapper] = {
    "gemma3": Wrapper(
        model_type="gemma3",
        architecture="Gemma3ForConditionalGeneration",
        keys=frozenset({"vision_config", "mm_tokens_per_image", "boi_token_index"})
        | {"eoi_token_index", "image_token_index"},
    )
}
