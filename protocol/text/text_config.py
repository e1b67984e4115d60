"""Where `config.json` describes the text model, and what it leaves to transformers."""

from collections.abc import Mapping

INHERITED = ("eos_token_id", "tie_word_embeddings")
"""Keys beside `text_config` that hold for the text model where it names none itself."""
TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {"vocab_size": 262_208, "max_position_embeddings": 131_072}
}
"""By `model_type`: what absent keys mean. Published multimodal Gemma 3 leaves these out."""


def inherit(config: Mapping[str, object], text: Mapping[str, object]) -> dict[str, object]:
    """`text`, the `text_config` of `config`, with the keys that it inherits."""
    inherited = {key: config[key] for key in INHERITED if key in config and text.get(key) is None}
    return {**text, **inherited}


def text_config(config: Mapping[str, object]) -> dict[str, object]:
    """The part of a multimodal model's config that describes its text, or the whole of another's;
    absent sizes filled in."""
    text = config.get("text_config")
    found = inherit(config, text) if isinstance(text, dict) and text else dict(config)
    return {**TEXT_DEFAULTS.get(str(found.get("model_type")), {}), **found}
