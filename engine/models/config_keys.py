"""Which keys of `config.json` are understood; all others are refused by name."""

from engine.models.family import Family, Wrapper
from engine.models.json_fields import Fields

_COMMON = """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps tie_word_embeddings
    rope_theta rope_scaling rope_parameters original_max_position_embeddings eos_token_id
    pretraining_tp
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
    prefix problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop
    return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id
    suppress_tokens task_specific_params temperature tie_encoder_decoder tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    attn_implementation unsloth_version unsloth_fixed _attn_implementation
    _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _from_model_config _name_or_path
"""
IGNORED = frozenset(_WRITTEN.split())
"""Written by transformers and trainers; they do not change logits."""


def refuse_unknown(fields: Fields, family: Family) -> None:
    refuse_keys(fields, COMMON | IGNORED | family.keys | family.ignored, family)
    for key, value in family.fixed.items():
        if (got := fields.get(key, value)) != value:
            raise fields.error(key, f"= {got!r} is not supported; {value!r} is")
    if fields.get("pretraining_tp") not in (None, 1):
        raise fields.error("pretraining_tp", "other than 1 is not supported")
    quantization = fields.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if method != "mxfp4":
            raise fields.error("quantization_config", f"= {quantization!r} is not supported")


def refuse_keys(fields: Fields, known: frozenset[str], model: Family | Wrapper) -> None:
    for key, value in fields.raw.items():
        off = value is None or value is False or value in ({}, [])  # a zero is a value
        if key not in known and not off:
            raise fields.error(key, f"= {value!r} is not supported for {model.model_type}")


def check_architecture(fields: Fields, model: Family | Wrapper) -> None:
    architectures = fields.get("architectures")
    if architectures and architectures != [model.architecture]:
        raise fields.error("architectures", f"= {architectures!r} is not [{model.architecture!r}]")
