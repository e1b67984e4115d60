"""The model families, as tables over shared parts: a new family of known parts is a row here.

Defaults are transformers' meaning of absent keys.
"""

from collections.abc import Mapping

from engine.models.family import Family, MixtureRule, Norms, WindowRule, Wrapper
from protocol.text.text_config import TEXT_DEFAULTS

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
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "tie_word_embeddings": True,
}  # fmt: skip
_STEPPED: Mapping[str, object] = {
    "decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": False,
    "use_sliding_window": False, "sliding_window": 4096,
}  # fmt: skip

LLAMA = Family(
    model_type="llama", architecture="LlamaForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias",
    defaults=NO_HEADS,
)  # fmt: skip
MISTRAL = Family(
    model_type="mistral", architecture="MistralForCausalLM",
    window=WindowRule(),
    defaults={"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
)  # fmt: skip
QWEN2 = Family(
    model_type="qwen2", architecture="Qwen2ForCausalLM",
    qkv_bias="always",
    window=_UPPER_WINDOWS,
    defaults={"num_key_value_heads": 32, "head_dim": None, **_QWEN_WINDOW},
)  # fmt: skip
QWEN3 = Family(
    model_type="qwen3", architecture="Qwen3ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head",
    window=_UPPER_WINDOWS,
    defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOW},
)  # fmt: skip
GEMMA2 = Family(
    model_type="gemma2", architecture="Gemma2ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", norms=_GEMMA_NORMS,
    window=_EVEN_WINDOWS,
    activation_key="hidden_activation", embedding_sqrt=True,
    options=frozenset(
        {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
    ),
    ignored=frozenset({"hidden_act", "sliding_window_size"}),
    defaults={**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)  # fmt: skip
GEMMA3 = Family(
    model_type="gemma3_text", architecture="Gemma3ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head", norms=_GEMMA_NORMS,
    window=WindowRule(typed=True, full_every=6, full_every_key="sliding_window_pattern"),
    activation_key="hidden_activation", embedding_sqrt=True, local_rope=True,
    options=frozenset({"query_pre_attn_scalar", "final_logit_softcapping"}),
    ignored=frozenset({"hidden_act", "_sliding_window_pattern"}),
    defaults={
        **_GEMMA_DEFAULTS, **TEXT_DEFAULTS["gemma3_text"],
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
    },
)  # fmt: skip
PHI3 = Family(
    model_type="phi3", architecture="Phi3ForCausalLM",
    fused=True,
    window=WindowRule(),
    partial_rotary=True, rope_aliases={"su": "longrope", "yarn": "longrope"},
    fixed={"full_attn_mod": 1, "interpolate_factor": 1},
    defaults={
        "num_key_value_heads": None, "sliding_window": None, "rms_norm_eps": 1e-5,
        "original_max_position_embeddings": 4096,
    },
)  # fmt: skip
OLMO2 = Family(
    model_type="olmo2", architecture="Olmo2ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="full",
    norms=Norms(
        before_attention=None, after_attention="post_attention_layernorm",
        before_mlp=None, after_mlp="post_feedforward_layernorm",
    ),
    defaults={**NO_HEADS, "rms_norm_eps": 1e-5},
)  # fmt: skip
GRANITE = Family(
    model_type="granite", architecture="GraniteForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias",
    options=frozenset(
        {"attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"}
    ),
    defaults={**NO_HEADS, "attention_multiplier": 1.0},
)  # fmt: skip
MIXTRAL = Family(
    model_type="mixtral", architecture="MixtralForCausalLM",
    window=WindowRule(),
    mixture=MixtureRule(
        size_key="intermediate_size", count_key="num_local_experts", renormalise="always",
        block="block_sparse_moe.", gate="w1", up="w3", down="w2",
    ),
    defaults={
        "num_key_value_heads": 8, "head_dim": None, "sliding_window": None,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0,
    },
)  # fmt: skip
QWEN2_MOE = Family(
    model_type="qwen2_moe", architecture="Qwen2MoeForCausalLM",
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
    model_type="qwen3_moe", architecture="Qwen3MoeForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head",
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
    model_type="gpt_oss", architecture="GptOssForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", sinks=True,
    window=_EVEN_WINDOWS,
    mixture=MixtureRule(
        size_key="intermediate_size", count_key="num_local_experts", softmax="after",
        router="router", biased=True,
        forms=("stacked", "mxfp4"), transposed=True, interleaved=True,
    ),
    activation="swiglu_oai", fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    ignored=frozenset({"experts_per_token", "initial_context_length"}),
    defaults={
        "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "sliding_window": 128,
        "num_experts_per_tok": 4, "rms_norm_eps": 1e-5, "rope_theta": 150_000.0,
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
