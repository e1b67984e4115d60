"""Which keys of `config.json` are read, which are refused, and which are told and ignored.

Refused by name is a short list of what users would miss; a value that changes nothing is not.
Whatever else is not understood is ignored, as transformers ignores it, and told once in the log.
"""

import logging
from collections.abc import Iterable, Mapping, Set

from engine.models.families.family import Family, Wrapper
from engine.models.families.wrappers import WRAPPERS
from protocol.errors import CheckpointError
from protocol.text.json_fields import Fields
from protocol.text.text_config import TEXT_TYPES

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

REFUSED: Mapping[str, str] = {
    "dual_chunk_attention_config": "beyond the trained length its authors and vLLM attend in parts",
    "sparse_attention_config": "its authors' long contexts leave tokens out",
    "sliding_window": "its authors and vLLM let tokens see that many only",
    "interleaved_sliding_window": "its authors and vLLM give some layers a window",
    "attention_chunk_size": "its authors and vLLM attend within chunks",
    "attn_logit_softcapping": "its authors and vLLM bend scores",
    "final_logit_softcapping": "its authors and vLLM bend logits",
    "attn_temperature_tuning": "its authors and vLLM scale late queries",
    "logit_scale": "vLLM multiplies logits",
    "partial_rotary_factor": "vLLM turns a part of each head",
    "is_causal": "tokens would attend to later ones too",
    "use_bidirectional_attention": "tokens would attend to later ones too",
    "per_layer_config": "transformers makes such layers of other sizes",
    "block_configs": "its authors and vLLM make such layers of other sizes",
}
"""Refused where the family does not read them, and why: beside formats of weights, all that others
apply although the family's class in transformers does not (docs/decisions/0012). Any other key of
another architecture is ignored, as there."""
NO_EFFECT: Mapping[str, object] = {"logit_scale": 1, "partial_rotary_factor": 1, "is_causal": True}
"""And null; of the others what is false, zero or empty."""
NULL_MEANS = frozenset(
    {"sliding_window", "num_key_value_heads", "head_dim"}
    | {"attn_logit_softcapping", "final_logit_softcapping"}
)
"""Keys whose null is not their default: no window, a kv head per head, no cap."""


def check_keys(fields: Fields, family: Family, *, context: int, unread: Iterable[str]) -> None:
    """Refuses what changes results and is not read; tells the rest, and `unread`. No sequence is
    longer than `context`."""
    for key, value in family.fixed.items():
        if (got := fields.get(key, value)) != value:
            raise fields.error(key, f"= {got!r} is not supported; {value!r} is")
    known = COMMON | IGNORED | family.keys
    for key, value in fields.raw.items():
        if key not in known and _changes(fields, key, value, context=context):
            raise _not_supported(fields, family, key)
    _check_quantization(fields, family)
    _tell(fields, family, {key for key in fields.raw if key not in known} | set(unread))


def check_wrapper_keys(fields: Fields, wrapper: Wrapper, *, known: frozenset[str]) -> None:
    """As `check_keys`, around the text part, which only a format of weights changes there."""
    for key, value in fields.raw.items():
        if value and _is_quantization(key, value):
            raise _not_supported(fields, wrapper, key)
    _tell(fields, wrapper, fields.raw.keys() - known)


def check_architecture(fields: Fields, model: Family | Wrapper) -> None:
    """Any of `architectures` may be the family's, in any case of letters, its model without a
    head, or what wraps it; absent, it is as `model_type` says."""
    named = fields.get("architectures") or [model.architecture]
    base = model.architecture.replace("ForCausalLM", "Model")
    around = [w.architecture for key, w in WRAPPERS.items() if TEXT_TYPES[key] == model.model_type]
    ours = {name.lower() for name in (model.architecture, base, *around)}
    if not isinstance(named, list) or not ours & {str(name).lower() for name in named}:
        why = f"which model_type {model.model_type!r} is served as"
        raise fields.error("architectures", f"= {named!r} has no {model.architecture!r}, {why}")


def _changes(fields: Fields, key: str, value: object, *, context: int) -> bool:
    if key in NO_EFFECT:
        return value is not None and value != NO_EFFECT[key]
    if not value or not (key in REFUSED or _is_quantization(key, value)):
        return False
    if key == "sliding_window" and isinstance(value, int):
        return bool(fields.get("use_sliding_window", True)) and value < context
    return True


def _check_quantization(fields: Fields, family: Family) -> None:
    """The formats that `engine.checkpoint.quant` has, for the families that are published so."""
    config = fields.get("quantization_config")
    if not config or "quantization_config" not in family.keys:
        return
    if (config.get("quant_method") if isinstance(config, dict) else None) != "mxfp4":
        raise _not_supported(fields, family, "quantization_config")


def _is_quantization(key: str, value: object) -> bool:
    """Not a number under such a name: the sizes of a codec."""
    named = key.startswith(("quantization", "quant_config", "compression_config"))
    return named and (isinstance(value, dict) or key in ("quantization", "quantization_config"))


def _not_supported(fields: Fields, model: Family | Wrapper, key: str) -> CheckpointError:
    shown = f"{fields.raw[key]!r:.200}"
    advice = "remove it from the file if it does not apply to the weights"
    if _is_quantization(key, fields.raw[key]):
        advice = "take the checkpoint that is not quantised"
    why = f": {REFUSED[key]}" if key in REFUSED else ""
    return fields.error(key, f"= {shown} is not supported for {model.model_type}{why}; {advice}")


def _tell(fields: Fields, model: Family | Wrapper, keys: Set[str]) -> None:
    told = keys - REFUSED.keys()  # those that are left of these are off
    if told:
        names = ", ".join(sorted(told))
        extra = {"keys": names, "model_type": model.model_type, "file": str(fields.file)}
        log.info("keys of config.json ignored: nothing here reads them", extra=extra)
