"""Which keys of `config.json` are read, which are refused, and which are told and ignored.

Refused, by name, is what would change results and is not read for the family: a short list, where a
value that changes nothing is let pass. Whatever else is not understood is ignored, as transformers
ignores it, and told once in the log.
"""

import logging
from collections.abc import Iterable, Set

from engine.models.family import Family, Wrapper
from engine.models.json_fields import Fields
from protocol.errors import CheckpointError

log = logging.getLogger(__name__)

_COMMON = """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps tie_word_embeddings
    rope_theta rope_scaling rope_parameters original_max_position_embeddings eos_token_id
"""
COMMON = frozenset(_COMMON.split())
_WRITTEN = """
    architectures attention_dropout auto_map bos_token_id bad_words_ids cache_implementation
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout_prob id2label initializer_range
    is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id length_penalty max_length
    min_length name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_router_logits output_scores pad_token_id
    prefix pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty
    resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise
    sep_token_id suppress_tokens task_specific_params temperature tie_encoder_decoder
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16 use_cache attn_implementation unsloth_version unsloth_fixed transformers_weights
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _from_model_config _name_or_path
"""
IGNORED = frozenset(_WRITTEN.split())
"""Written by transformers and trainers; they do not change logits."""

_SWITCHES = """
    sliding_window sliding_window_size interleaved_sliding_window attention_window_size
    attention_chunk_size dual_chunk_attention_config sparse_attention_config index_topk alibi
    use_alibi clip_qkv attn_logit_softcapping attn_logit_softcap final_logit_softcapping
    final_logit_softcap logits_soft_cap output_logit_soft_cap moe_router_logit_softcapping
    attn_temperature_tuning log_scaling_alpha no_rope_layers no_rope_layer_interval
    nope_layer_interval use_bidirectional_attention add_cross_attention qk_layernorm
    query_pre_attn_scalar rope_local_base_freq local_rope_theta layer_rope_theta swa_rope_theta
    rotary_dim attention_bias qkv_bias use_qkv_bias attention_out_bias mlp_bias lm_head_bias bias
    use_bias add_bias_linear use_parallel_residual parallel_attn
    apply_residual_connection_post_layernorm use_post_norm num_experts num_local_experts
    n_routed_experts moe_num_experts shared_expert_intermediate_size shared_intermediate_size
    n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace
    use_expert_bias swiglu_limit kv_lora_rank q_lora_rank num_kv_shared_layers attention_k_eq_v
    hidden_size_per_layer_input per_layer_config block_configs mup_enabled use_mup scale_embedding
    scale_attn_by_inverse_layer_idx compression_config quant_config
"""
_FACTORS = """
    partial_rotary_factor rotary_pct rotary_percent rope_ratio attention_multiplier
    embedding_multiplier residual_multiplier logits_scaling logit_scale lm_head_multiplier
    key_multiplier attention_in_multiplier attention_out_multiplier attention_value_scale
    embedding_scale scale_emb scale_depth routed_scaling_factor router_scaling_factor route_scale
    n_group topk_group
"""
SWITCHES, FACTORS = frozenset(_SWITCHES.split()), frozenset(_FACTORS.split())
"""Change results in some family. A switch is off where it is null, false, zero or empty; a factor
changes nothing where it is null or one."""
_PLACES = {
    "layer_types": "full_attention",
    "is_causal": True,
    "position_embedding_type": "rope",
}
"""And those whose only value without effect is this one, or a list of it."""


def check_keys(fields: Fields, family: Family, *, context: int, unread: Iterable[str]) -> None:
    """Refuses what changes results and is not read; tells the rest, and `unread`. No sequence is
    longer than `context`."""
    for key, value in family.fixed.items():
        if (got := fields.get(key, value)) != value:
            raise fields.error(key, f"= {got!r} is not supported; {value!r} is")
    known = COMMON | IGNORED | family.keys | family.ignored
    for key, value in fields.raw.items():
        if key not in known and _changes(fields, family, key, value, context=context):
            raise _not_supported(fields, family, key)
    _check_quantization(fields, family)
    _tell(fields, family, {key for key in fields.raw if key not in known} | set(unread))


def check_wrapper_keys(fields: Fields, wrapper: Wrapper, *, known: frozenset[str]) -> None:
    """As `check_keys`, around the text part, which only a format of weights changes there."""
    for key, value in fields.raw.items():
        if _is_quantization(key) and value:
            raise _not_supported(fields, wrapper, key)
    _tell(fields, wrapper, fields.raw.keys() - known)


def check_architecture(fields: Fields, model: Family | Wrapper) -> None:
    """Any of `architectures` may be the family's, in any case of letters, or its model without a
    head; absent, it is as `model_type` says."""
    named = fields.get("architectures") or [model.architecture]
    base = model.architecture.replace("ForCausalLM", "Model")
    ours = {name.lower() for name in (model.architecture, base)}
    if not isinstance(named, list) or not ours & {str(name).lower() for name in named}:
        raise fields.error(
            "architectures",
            f"= {named!r} has no {model.architecture!r}, which model_type "
            f"{model.model_type!r} is served as",
        )


def _changes(fields: Fields, family: Family, key: str, value: object, *, context: int) -> bool:
    if key in _PLACES:
        named = value if isinstance(value, list) else [value]
        return value is not None and any(one != _PLACES[key] for one in named)
    if key in FACTORS:
        return value is not None and value != 1
    if not value or not (key in SWITCHES or _is_quantization(key)):
        return False
    if key == "sliding_window" and isinstance(value, int):
        return bool(fields.get("use_sliding_window", True)) and value < context
    if key == "no_rope_layers":  # of each layer, whether it turns
        return not isinstance(value, list) or not all(value)
    return not (family.qkv_bias == "always" and key in ("attention_bias", "qkv_bias"))


def _check_quantization(fields: Fields, family: Family) -> None:
    """The formats that `engine.checkpoint.quant` has, for the families that are published so."""
    config = fields.get("quantization_config")
    if not config or "quantization_config" not in family.keys:
        return
    if (config.get("quant_method") if isinstance(config, dict) else None) != "mxfp4":
        raise _not_supported(fields, family, "quantization_config")


def _is_quantization(key: str) -> bool:
    return key.startswith(("quantization", "quant_config", "compression_config"))


def _not_supported(fields: Fields, model: Family | Wrapper, key: str) -> CheckpointError:
    shown = repr(fields.raw[key])
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    advice = "remove it from the file if it does not apply to the weights"
    if _is_quantization(key):
        advice = "take the checkpoint that is not quantised"
    return fields.error(key, f"= {shown} is not supported for {model.model_type}; {advice}")


def _tell(fields: Fields, model: Family | Wrapper, keys: Set[str]) -> None:
    told = keys - SWITCHES - FACTORS - _PLACES.keys()  # those that are left of these are off
    if told:
        names = ", ".join(sorted(told))
        extra = {"keys": names, "model_type": model.model_type, "file": str(fields.file)}
        log.info("keys of config.json ignored: nothing here reads them", extra=extra)
