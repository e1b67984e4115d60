"""Small checkpoints of every family, each showing other options of it: name to shape."""

from typing import Any

from tools.make_checkpoint import Shape

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PARTIAL: dict[str, Any] = {"partial_rotary_factor": 0.5}
SHORT = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8]
LONG = [4 * factor for factor in SHORT]
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
}
MSCALES: dict[str, Any] = LONGROPE | {
    "short_mscale": 1.1, "long_mscale": 1.3, "original_max_position_embeddings": 128,
}  # fmt: skip
GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
SMALL_CAPS = {
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 24,
}
"""So small that every score and every logit bends."""
GROWTH = {"llama_4_scaling_beta": 0.5}
YARN_16 = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16}
SLIDE, FULL = "sliding_attention", "full_attention"
SHAPES = {
    "llama": Shape(),
    "llama-tied-heads-not-grouped": Shape(tied=True, kv_heads=4),
    "llama-biases": Shape(bias=True),
    "llama-wide-heads": Shape(head_dim=40),
    "llama-odd-vocabulary-sharded": Shape(vocab=509, shard_bytes=50_000),
    "llama-linear-rope": Shape(rope={"rope_type": "linear", "factor": 2.0}),
    "llama-llama3-rope": Shape(rope=LLAMA3, rope_theta=500_000.0),
    "llama-llama3-rope-legacy": Shape(rope=LLAMA3, legacy_rope=True, rope_theta=500_000.0),
    "llama-one-kv-head": Shape(kv_heads=1, heads=8, head_dim=16),
    "mistral": Shape(family="mistral"),
    "mistral-window": Shape(family="mistral", window=7),
    "qwen2": Shape(family="qwen2"),
    "qwen2-yarn": Shape(family="qwen2", context=256, rope=YARN, tied=True),
    "qwen2-yarn-attention-factor": Shape(
        family="qwen2", context=256, rope=YARN | {"attention_factor": 1.5}
    ),
    "qwen2-window-upper-layers": Shape(family="qwen2", window=9, window_from_layer=1),
    "qwen3": Shape(family="qwen3", head_dim=32),
    "qwen3-tied-bias-window": Shape(family="qwen3", head_dim=16, tied=True, bias=True, window=20),
    "gemma2": Shape(family="gemma2", head_dim=16, tied=True),
    "gemma2-window": Shape(
        family="gemma2", head_dim=32, window=9, layers=3, bias=True, extra=SMALL_CAPS
    ),
    "gemma3": Shape(
        family="gemma3_text", head_dim=16, tied=True, layers=7, hidden=32, window=9, rope_theta=1e6
    ),
    "gemma3-named-layers-legacy-rope": Shape(
        family="gemma3_text",
        head_dim=32,
        layers=3,
        window=20,
        rope_theta=1e6,
        rope={"rope_type": "linear", "factor": 8.0},
        legacy_rope=True,
        extra={"layer_types": [FULL, SLIDE, SLIDE], "final_logit_softcapping": 5.0},
    ),
    "phi3": Shape(family="phi3"),
    "phi3-window-partial-rotary": Shape(family="phi3", window=9, rope=PARTIAL, kv_heads=4),
    "phi3-longrope-within-the-original-context": Shape(family="phi3", rope=LONGROPE),
    "phi3-longrope-beyond-the-original-context": Shape(
        # 8: every sequence here is longer, so that transformers never takes the short factors.
        family="phi3", hidden=128, extra={"original_max_position_embeddings": 8}, tied=True,
        rope={**LONGROPE, **PARTIAL},
    ),
    "olmo2": Shape(family="olmo2"),
    "olmo2-bias-heads-not-grouped": Shape(family="olmo2", bias=True, kv_heads=4, tied=True),
    "granite": Shape(family="granite", extra=GRANITE),
    "granite-biases-tied": Shape(
        family="granite", bias=True, tied=True, extra=GRANITE | {"rms_norm_eps": 1e-3}
    ),
    "mixtral": Shape(family="mixtral"),
    "mixtral-window-stacked": Shape(
        family="mixtral", window=9, expert_form="stacked", num_experts=5, experts_per_token=3
    ),
    "qwen2-moe": Shape(family="qwen2_moe", extra={"qkv_bias": False}),
    "qwen2-moe-some-layers-dense": Shape(
        family="qwen2_moe", layers=5, hidden=32, window=9, window_from_layer=4, tied=True,
        extra={"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": True},
    ),
    "qwen3-moe": Shape(family="qwen3_moe", head_dim=32, num_experts=8, experts_per_token=4),
    "qwen3-moe-renormalised-window-bias": Shape(
        family="qwen3_moe", window=20, bias=True, expert_form="stacked", layers=3,
        extra={"norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "gpt-oss": Shape(family="gpt_oss", bias=True, head_dim=16, window=9, layers=3),
    "gpt-oss-yarn": Shape(
        family="gpt_oss", head_dim=32, num_experts=6, experts_per_token=4, rope_theta=150_000.0,
        rope=YARN | {"truncate": False}, context=256,
    ),
    "glm": Shape(family="glm", bias=True, head_dim=16),
    "glm-share-of-the-rope": Shape(
        family="glm", head_dim=32, rope={"partial_rotary_factor": 0.25}, tied=True, kv_heads=4
    ),
    "glm4": Shape(family="glm4", head_dim=32, bias=True, rope=PARTIAL),
    "glm4-yarn": Shape(
        family="glm4", head_dim=16, kv_heads=1, context=256, rope=YARN | PARTIAL,
        extra={"rms_norm_eps": 1e-3},
    ),
    "cohere": Shape(family="cohere", tied=True, rope_theta=5e5),
    "cohere-norms-of-heads": Shape(
        family="cohere", bias=True, hidden=128, extra={"use_qk_norm": True, "logit_scale": 0.8}
    ),
    "cohere2": Shape(family="cohere2", layers=5, window=9, tied=True),
    "cohere2-named-layers": Shape(
        family="cohere2", layers=3, window=20, bias=True, kv_heads=1,
        extra={"layer_types": [FULL, SLIDE, FULL], "logit_scale": 0.25},
    ),
    "starcoder2": Shape(family="starcoder2", bias=True, tied=True),
    "starcoder2-window-no-bias": Shape(
        family="starcoder2", window=9, kv_heads=1, extra={"norm_epsilon": 1e-3}
    ),
    "stablelm": Shape(family="stablelm", hidden=128, bias=True),
    "stablelm-parallel-norms-of-heads": Shape(
        family="stablelm", kv_heads=4, tied=True, rope=PARTIAL,
        extra={"use_parallel_residual": True, "qk_layernorm": True},
    ),
    "phimoe": Shape(family="phimoe", bias=True, num_experts=6, context=128, rope=MSCALES),
    "phimoe-long-window-stacked": Shape(
        # transformers takes the short factors always, and the scale of the length.
        family="phimoe", window=20, kv_heads=4, expert_form="stacked", tied=True,
        rope=MSCALES | {"original_max_position_embeddings": 8, "short_factor": LONG},
        extra={"router_jitter_noise": 0.05}, seed=3,
    ),
    "gemma": Shape(family="gemma", head_dim=16, tied=True),
    "gemma-legacy-activation-bias": Shape(
        family="gemma", head_dim=32, kv_heads=1, bias=True, extra={"hidden_act": "gelu"}
    ),
    "olmo3": Shape(
        family="olmo3", layers=5, window=9, context=256, rope_theta=5e5, rope=YARN
    ),
    "olmo3-named-layers-legacy-rope": Shape(
        family="olmo3", layers=3, window=20, kv_heads=4, bias=True, legacy_rope=True,
        extra={"layer_types": [FULL, SLIDE, FULL]},
    ),
    "exaone4": Shape(family="exaone4", layers=5, window=9),
    "exaone4-all-layers-turn": Shape(
        family="exaone4", head_dim=32, tied=True, rope=LLAMA3,
        extra={"sliding_window": None, "layer_types": [FULL, FULL]},
    ),
    "smollm3": Shape(family="smollm3", layers=5, tied=True, rope_theta=2e6),
    "smollm3-named-layers-windows-bias": Shape(
        family="smollm3", layers=3, window=9, bias=True, extra={"no_rope_layers": [0, 1, 0]}
    ),
    "seed-oss": Shape(family="seed_oss", head_dim=32, bias=True, rope_theta=1e7),
    "seed-oss-output-bias-tied": Shape(
        family="seed_oss", head_dim=16, tied=True,
        extra={"attention_bias": False, "attention_out_bias": True},
    ),
    "ministral": Shape(family="ministral", window=9, kv_heads=4, head_dim=16),
    "ministral-named-layers": Shape(
        family="ministral", layers=3, head_dim=32, window=20,
        extra={"layer_types": [SLIDE, FULL, SLIDE]},
    ),
    "ministral3": Shape(family="ministral3", head_dim=32, context=256, rope=GROWTH | YARN_16),
    "ministral3-window-tied": Shape(
        family="ministral3", head_dim=16, window=20, tied=True, rope=GROWTH | {
            "rope_type": "default", "original_max_position_embeddings": 8,
        },
    ),
    "granite-moe": Shape(family="granitemoe", extra=GRANITE),
    "granite-moe-stacked-bias": Shape(
        family="granitemoe", bias=True, tied=True, expert_form="stacked", num_experts=5,
        experts_per_token=3, extra=GRANITE,
    ),
    "granite-moe-shared": Shape(family="granitemoeshared", extra=GRANITE),
    "granite-moe-shared-none": Shape(
        family="granitemoeshared", expert_form="stacked", tied=True,
        extra={"shared_intermediate_size": 0},
    ),
    "granite-4": Shape(
        family="granitemoehybrid", layers=3, num_experts=0, experts_per_token=0, tied=True,
        extra=GRANITE | {"layer_types": ["attention"] * 3, "position_embedding_type": "rope"},
    ),
    "granite-4-experts-no-rope": Shape(
        family="granitemoehybrid", bias=True,
        extra=GRANITE | {"layer_types": [FULL, FULL], "position_embedding_type": None},
    ),
}  # fmt: skip
