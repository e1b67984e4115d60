"""Families with layer norms."""

from collections.abc import Mapping

from engine.models.families.family import NO_HEADS, Family, MixtureRule, MlpRule, Norms, WindowRule

_ONE_NORM = Norms(before_mlp=None, centred=True, eps_key="layer_norm_eps")
_COHERE: Mapping[str, object] = {
    **NO_HEADS, "layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True,
}  # fmt: skip

COHERE = Family(
    model_type="cohere", architecture="CohereForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias",
    qk_norm="layer", qk_norm_key="use_qk_norm",
    norms=_ONE_NORM, parallel="always", interleaved_rope=True,
    options=frozenset({"logit_scale"}),
    defaults={**_COHERE, "rope_theta": 500_000.0},
)  # fmt: skip
COHERE2 = Family(
    model_type="cohere2", architecture="Cohere2ForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias",
    window=WindowRule(typed=True, full_every=4, full_every_key="sliding_window_pattern"),
    unturned="full_attention",
    norms=_ONE_NORM, parallel="always", interleaved_rope=True,
    options=frozenset({"logit_scale"}),
    defaults={**_COHERE, "sliding_window": 4096},
)  # fmt: skip
STARCODER2 = Family(
    model_type="starcoder2", architecture="Starcoder2ForCausalLM",
    qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias",
    norms=Norms(centred=True, bias=True, eps_key="norm_epsilon"),
    mlp=MlpRule(gate_up=("c_fc",), down="c_proj", gated=False),
    window=WindowRule(),
    defaults={
        "num_key_value_heads": 2, "head_dim": None, "use_bias": True, "norm_epsilon": 1e-5,
        "hidden_act": "gelu_pytorch_tanh", "sliding_window": None, "tie_word_embeddings": True,
    },
)  # fmt: skip
STABLELM = Family(
    model_type="stablelm", architecture="StableLmForCausalLM",
    qkv_bias="use_qkv_bias", qk_norm="layers", qk_norm_key="qk_layernorm",
    norms=Norms(centred=True, bias=True, eps_key="layer_norm_eps"),
    parallel="use_parallel_residual", partial_rotary=True,
    defaults={
        "num_key_value_heads": 32, "head_dim": None, "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
    },
)  # fmt: skip
PHIMOE = Family(
    model_type="phimoe", architecture="PhimoeForCausalLM",
    qkv_bias="attention_bias", output_bias="attention_bias", head_bias="lm_head_bias",
    norms=Norms(centred=True, bias=True),
    window=WindowRule(),
    mixture=MixtureRule(
        size_key="intermediate_size", count_keys=("num_local_experts",), softmax="sparsemixer",
        block="block_sparse_moe.", stacked_router="router", gate="w1", up="w3", down="w2",
    ),
    defaults={
        "num_key_value_heads": 8, "head_dim": None, "sliding_window": None,
        "num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01,
        "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0,
    },
)  # fmt: skip

LAYER_NORMED = (COHERE, COHERE2, STARCODER2, STABLELM, PHIMOE)
