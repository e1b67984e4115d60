"""Small tokeniser directories, written out in code: byte-level and byte-fallback.

No weights. Called by tests of `protocol.text.tokenizer` and of the router's HTTP surface.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Stop here, please.",
    "Once upon a time there was a small engine that served many questions.",
    "naïve café, 東京の天気は晴れです。 Привет мир! 🙂🙃👩‍👩‍👧",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level_tokenizer() -> Tokenizer:
    """GPT-2 style; any string survives encode and decode."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
    )
    raw.train_from_iterator(CORPUS * 4, trainer)
    raw.add_tokens([AddedToken("<think now>", special=False)])
    return raw


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama-2 style: `▁` for spaces and `<0xXX>` for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set("".join(CORPUS[:2]).replace(" ", "")) | {"▁"})
    vocab = {piece: index for index, piece in enumerate([*pieces, *letters])}
    raw = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    return raw


def write_checkpoint(
    path: Path,
    *,
    raw: Tokenizer | None = None,
    chat_template: str | None = CHATML,
    eos_token: str = "<|im_end|>",
    max_context_tokens: int = 256,
    **tokenizer_config: Any,
) -> Path:
    """The files `protocol.text.tokenizer.Tokenizer.load` reads, in `path`."""
    raw = raw or byte_level_tokenizer()
    path.mkdir(parents=True, exist_ok=True)
    raw.save(str(path / "tokenizer.json"))
    config = {
        "model_type": "llama",
        "vocab_size": raw.get_vocab_size(),
        "max_position_embeddings": max_context_tokens,
        "eos_token_id": raw.token_to_id(eos_token),
    }
    (path / "config.json").write_text(json.dumps(config))
    tokenizer_config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token}
    if chat_template is not None:
        tokenizer_config["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return path
