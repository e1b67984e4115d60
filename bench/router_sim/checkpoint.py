"""The model's directory without its weights: a BPE of 32,000 tokens over this Python's own sources,
which are the text of all prompts and answers too. Made once into the user's cache.
"""

import json
import os
import random
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 32_000
CONTEXT = 32_768
END = "<|im_end|>"
_SPECIAL = ["<|endoftext|>", "<|im_start|>", END]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY,
    "bos_token_id": 0, "eos_token_id": 2, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
CHARS_A_TOKEN = 3.85
"""Of these sources with this vocabulary; what a prompt really has, the run says."""


def text_checkpoint() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "baton" / "bench-router"
    if not (path / "tokenizer_config.json").exists():  # the last file written
        path.mkdir(parents=True, exist_ok=True)
        _train().save(str(path / "tokenizer.json"))
        (path / "config.json").write_text(json.dumps(_CONFIG))
        (path / "generation_config.json").write_text('{"eos_token_id": 2}')
        shown = {"chat_template": _TEMPLATE, "eos_token": END}
        (path / "tokenizer_config.json").write_text(
            json.dumps({**shown, "tokenizer_class": "PreTrainedTokenizerFast"})
        )
    return path


def corpus() -> str:
    """Some megabytes of Python, the same in every process."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    return "\n".join(file.read_text(errors="replace") for file in files)


class Prompts:
    """Texts of about `num_tokens` tokens, never the same twice: no prefix is shared."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._text = corpus()

    def text(self, num_tokens: int) -> str:
        size = round(num_tokens * CHARS_A_TOKEN)
        begin = self._random.randrange(len(self._text) - size)
        return self._text[begin : begin + size]


def _train() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    return made
