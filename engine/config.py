"""What `config.json` and `generation_config.json` say, checked, as one frozen value.

Called by `engine.model` and by whoever sizes a pool. Accepts transformers 4 and 5 spellings.
Whatever would change the result and is not understood is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.families import FAMILIES, BiasRule, Family
from engine.fields import Fields, read_json
from engine.kvgroups import KvGroup, group_layers
from engine.rope import Rope
from engine.rope_config import read_rope
from protocol.layout import KvDtype, KvLayout

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
COMMON = frozenset(
    {*REQUIRED, "model_type", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"}
    | {"tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "eos_token_id"}
    | {"original_max_position_embeddings", "partial_rotary_factor", "pretraining_tp"}
)
# Written by transformers and trainers; they do not change logits.
IGNORED = frozenset(
    {
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "embd_pdrop",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "resid_pdrop",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
        "attn_implementation",
        "unsloth_version",
        "unsloth_fixed",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model, ready to build."""

    family: Family
    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    """Per layer: how many last tokens a token sees, itself included; None: all."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...]
    revision: str = ""
    """Digest of the configuration and the tensors' names, shapes and places; set on loading."""

    @property
    def kv_groups(self) -> tuple[KvGroup, ...]:
        return group_layers(self.windows)

    def kv_layout(self, *, block_tokens: int, dtype: KvDtype) -> KvLayout:
        return KvLayout(
            num_layers=len(self.kv_groups[0].layers),
            num_groups=len(self.kv_groups),
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=block_tokens,
            dtype=dtype,
        )


def read_config(path: Path) -> ModelConfig:
    """The model in directory `path`. Raises CheckpointError naming the file and the key."""
    file = path / "config.json"
    raw = read_json(file)
    fields = Fields(file, raw)
    family = _family(fields)
    fields.defaults = family.defaults
    _refuse_unknown(fields, family)
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or hidden_size // num_heads
    num_kv_heads = fields.optional_size("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads={num_heads}")
    if head_dim % 2:
        raise fields.error("head_dim", f"must be even, is {head_dim}")
    num_layers = fields.size("num_hidden_layers")
    return ModelConfig(
        family=family,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        mlp_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_context_tokens=fields.size("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=read_rope(fields),
        windows=_windows(fields, family, num_layers=num_layers),
        qkv_bias=_bias(fields, family.qkv_bias),
        output_bias=_bias(fields, family.output_bias),
        mlp_bias=_bias(fields, family.mlp_bias),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        eos_token_ids=_eos(path, fields),
    )


def _refuse_unknown(fields: Fields, family: Family) -> None:
    known = COMMON | IGNORED | family.keys
    for key, value in fields.raw.items():
        if key.startswith("_") or key in known or value in (None, False, {}, []):
            continue
        raise fields.error(key, f"= {value!r} is not supported for {family.model_type}")
    if (act := fields.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise fields.error("hidden_act", f"= {act!r} is not supported; silu is")
    if fields.get("pretraining_tp") not in (None, 1):
        raise fields.error("pretraining_tp", "other than 1 is not supported")
    if fields.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise fields.error("partial_rotary_factor", "other than 1 is not supported")


def _family(fields: Fields) -> Family:
    name = fields.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise fields.error("model_type", f"= {name!r} is not one of {', '.join(FAMILIES)}")
    architectures = fields.get("architectures")
    if architectures and architectures != [family.architecture]:
        raise fields.error("architectures", f"= {architectures!r} is not [{family.architecture!r}]")
    return family


def _bias(fields: Fields, rule: BiasRule) -> bool:
    return rule == "always" or (rule != "never" and fields.flag(rule, False))


def _windows(fields: Fields, family: Family, *, num_layers: int) -> tuple[int | None, ...]:
    none: tuple[int | None, ...] = (None,) * num_layers
    if family.window == "never":
        return none
    if family.window == "every_layer":
        return (fields.optional_size("sliding_window"),) * num_layers
    kinds = fields.get("layer_types")
    size = fields.optional_size("sliding_window")
    window = size if fields.flag("use_sliding_window", False) else None
    if kinds is None:
        first = int(fields.number("max_window_layers"))
        return tuple(window if layer >= first else None for layer in range(num_layers))
    allowed = {"full_attention", "sliding_attention"} if window else {"full_attention"}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not set(kinds) <= allowed:
        raise fields.error("layer_types", f"must be {num_layers} of {sorted(allowed)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _eos(path: Path, fields: Fields) -> tuple[int, ...]:
    """Every id that ends a text; `generation_config.json` goes before `config.json`."""
    file = path / "generation_config.json"
    generation = Fields(file, read_json(file) if file.exists() else {})
    source = generation if generation.get("eos_token_id") is not None else fields
    value = source.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    vocab_size = fields.size("vocab_size")
    for token_id in ids:
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise source.error("eos_token_id", f"{token_id!r} is not an id below {vocab_size}")
    return tuple(dict.fromkeys(ids))
