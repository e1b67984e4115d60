"""Families with RMS norms and one MLP in every layer."""

from collections.abc import Mapping
from dataclasses import replace

from engine.models.families.family import (
    GRANITE_SCALES,
    NO_HEADS,
    Family,
    MlpRule,
    Norms,
    WindowRule,
)
from protocol.text.text_config import TEXT_DEFAULTS

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
    defaults={**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)  # fmt: skip
GEMMA3 = Family(
    model_type="gemma3_text", architecture="Gemma3ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head", norms=_GEMMA_NORMS,
    window=WindowRule(typed=True, full_every=6, full_every_key="sliding_window_pattern"),
    activation_key="hidden_activation", embedding_sqrt=True, local_rope=True,
    options=frozenset({"query_pre_attn_scalar", "final_logit_softcapping"}),
    defaults={
        **_GEMMA_DEFAULTS, **TEXT_DEFAULTS["gemma3_text"],
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
    },
)  # fmt: skip
PHI3 = Family(
    model_type="phi3", architecture="Phi3ForCausalLM",
    fused=True, mlp=MlpRule(gate_up=("gate_up_proj",)),
    window=WindowRule(),
    partial_rotary=True, rope_aliases={"su": "longrope", "yarn": "longrope"},
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
    options=GRANITE_SCALES,
    defaults={**NO_HEADS, "attention_multiplier": 1.0},
)  # fmt: skip
GEMMA = Family(
    model_type="gemma", architecture="GemmaForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", norms=Norms(plus_one=True),
    embedding_sqrt=True, activation_aliases={"gelu": "gelu_pytorch_tanh"},
    defaults={
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    },
)  # fmt: skip
OLMO3 = replace(
    OLMO2,
    model_type="olmo3", architecture="Olmo3ForCausalLM",
    window=WindowRule(typed=True, full_every=4), local_rope=True,
    defaults={
        **OLMO2.defaults, "sliding_window": 4096,
        "rope_theta": 500_000.0, "rope_local_base_freq": 500_000.0,
    },
)  # fmt: skip
EXAONE4 = Family(
    model_type="exaone4", architecture="Exaone4ForCausalLM",
    qk_norm="head", norms=OLMO2.norms,
    window=WindowRule(typed=True, full_every=4, full_every_key="sliding_window_pattern"),
    unturned="full_attention",
    defaults={
        "num_key_value_heads": 32, "head_dim": None, "rms_norm_eps": 1e-5, "sliding_window": 4096
    },
)  # fmt: skip
SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3", architecture="SmolLM3ForCausalLM",
    window=WindowRule(flag="use_sliding_window", typed=True, bound="unturned"),
    unturned="no_rope_layers",
    defaults={
        "num_key_value_heads": 4, "head_dim": None, "sliding_window": None,
        "use_sliding_window": False, "no_rope_layer_interval": 4, "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
SEED_OSS = replace(
    LLAMA,
    model_type="seed_oss", architecture="SeedOssForCausalLM",
    output_bias="attention_out_bias",
    defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
)  # fmt: skip
MINISTRAL = replace(
    MISTRAL,
    model_type="ministral", architecture="MinistralForCausalLM", window=WindowRule(typed=True),
)  # fmt: skip
MINISTRAL3 = replace(
    MISTRAL,
    model_type="ministral3", architecture="Ministral3ForCausalLM",
    options=frozenset({"llama_4_scaling_beta"}),
    defaults={
        "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0,
            "original_max_position_embeddings": 16_384, "beta_fast": 32.0, "beta_slow": 1.0,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
    },
)  # fmt: skip
QWEN2_5_VL = replace(
    QWEN2,
    model_type="qwen2_5_vl_text", architecture="Qwen2_5_VLForConditionalGeneration",
    rope_aliases={"mrope": "default"},
    defaults={
        **QWEN2.defaults, "num_key_value_heads": 8, "max_window_layers": 80,
        "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0,
    },
)  # fmt: skip
QWEN2_VL = replace(
    QWEN2_5_VL, model_type="qwen2_vl_text", architecture="Qwen2VLForConditionalGeneration"
)
QWEN3_VL = replace(
    QWEN3,
    model_type="qwen3_vl_text", architecture="Qwen3VLForConditionalGeneration",
    window=None, rope_aliases={"mrope": "default"},
    defaults={"num_key_value_heads": 32, "head_dim": 128, "rope_theta": 500_000.0},
)  # fmt: skip
GLM = Family(
    model_type="glm", architecture="GlmForCausalLM",
    qkv_bias="attention_bias",
    mlp=MlpRule(gate_up=("gate_up_proj",)),
    partial_rotary=True, interleaved_rope=True,
    defaults={
        "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-7,
    },
)  # fmt: skip
GLM4 = replace(
    GLM,
    model_type="glm4", architecture="Glm4ForCausalLM",
    norms=Norms(
        after_attention="post_self_attn_layernorm", before_mlp="post_attention_layernorm",
        after_mlp="post_mlp_layernorm",
    ),
)  # fmt: skip

PLAIN = (
    LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, OLMO3, GRANITE, EXAONE4,
    SMOLLM3, SEED_OSS, MINISTRAL, MINISTRAL3, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, GLM, GLM4,
)  # fmt: skip
