"""Families that are mixtures of experts."""

from collections.abc import Mapping
from dataclasses import replace

from engine.models.families.family import (
    GRANITE_SCALES,
    NO_HEADS,
    Family,
    MixtureRule,
    MlpRule,
    WindowRule,
)

_STEPPED: Mapping[str, object] = {
    "decoder_sparse_step": 1, "mlp_only_layers": (), "norm_topk_prob": False,
    "use_sliding_window": False, "sliding_window": 4096,
}  # fmt: skip

MIXTRAL = Family(
    model_type="mixtral", architecture="MixtralForCausalLM",
    window=WindowRule(),
    mixture=MixtureRule(
        size_key="intermediate_size", count_keys=("num_experts", "num_local_experts"),
        renormalise="always",
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
        size_key="moe_intermediate_size", renormalise="norm_topk_prob", stepped=True,
        shared=MlpRule(
            size_key="shared_expert_intermediate_size", block="mlp.shared_expert.",
            gate="mlp.shared_expert_gate",
        ),
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
        size_key="moe_intermediate_size", count_keys=("num_local_experts", "num_experts"),
        renormalise="norm_topk_prob", stepped=True,
    ),
    defaults={
        **_STEPPED, "num_key_value_heads": 4, "head_dim": None,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    },
)  # fmt: skip
GPT_OSS = Family(
    model_type="gpt_oss", architecture="GptOssForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", sinks=True,
    window=WindowRule(typed=True, full_every=2),
    mixture=MixtureRule(
        size_key="intermediate_size", count_keys=("num_experts", "num_local_experts"),
        softmax="after", router="router", biased=True,
        forms=("stacked", "mxfp4"), transposed=True, interleaved=True,
    ),
    activation="swiglu_oai", fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    defaults={
        "num_key_value_heads": 8, "head_dim": 64, "attention_bias": True, "sliding_window": 128,
        "num_experts_per_tok": 4, "rms_norm_eps": 1e-5, "rope_theta": 150_000.0,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 4096,
        },
    },
)  # fmt: skip
_GRANITE_SHARED = MlpRule(
    size_key="shared_intermediate_size", block="shared_mlp.",
    gate_up=("input_linear",), down="output_linear",
)  # fmt: skip
_GRANITE_EXPERTS = MixtureRule(
    size_key="intermediate_size", count_keys=("num_local_experts",), softmax="after",
    router="router", forms=("granite", "stacked"),
    block="block_sparse_moe.", stacked_block="block_sparse_moe.",
)  # fmt: skip
GRANITE_MOE = Family(
    model_type="granitemoe", architecture="GraniteMoeForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias",
    mixture=_GRANITE_EXPERTS,
    options=GRANITE_SCALES,
    defaults={
        **NO_HEADS, "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2
    },
)  # fmt: skip
GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    model_type="granitemoeshared", architecture="GraniteMoeSharedForCausalLM",
    mixture=replace(_GRANITE_EXPERTS, shared=_GRANITE_SHARED),
    defaults={**GRANITE_MOE.defaults, "shared_intermediate_size": 0},
)  # fmt: skip
GRANITE_MOE_HYBRID = replace(
    GRANITE_MOE_SHARED,
    model_type="granitemoehybrid", architecture="GraniteMoeHybridForCausalLM",
    mlp=_GRANITE_SHARED, unturned="position_embedding_type", stateless=True,
    defaults={**GRANITE_MOE.defaults, "shared_intermediate_size": 1024},
)  # fmt: skip
MIXTURES = (
    MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS, GRANITE_MOE, GRANITE_MOE_SHARED, GRANITE_MOE_HYBRID,
)  # fmt: skip
