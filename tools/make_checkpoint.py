"""Writes a random-weight Hugging Face checkpoint of any shape, for tests and benchmarks.

    python -m tools.make_checkpoint OUT --family qwen3 --hidden 128 --layers 2 ...

It loads in transformers and in Baton alike and has a byte-level BPE tokenizer and a chat template,
so it can be served; what it says is noise. The same arguments give the same bytes.
"""

# Shapes: N features out, K features in.

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from engine.config import ModelConfig, read_config
from engine.families import FAMILIES
from engine.family import ExpertForm, Family
from engine.mxfp4 import BLOCK
from engine.tensors import QUANTISED, Naming, tensor_shapes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|end|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>")
END_ID = 0
Rope = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to write. Fields that a family does not have are ignored by it."""

    family: str = "llama"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    mlp: int = 128
    vocab: int = 512
    context: int = 2048
    tied: bool = False
    bias: bool = False
    """attention_bias and mlp_bias, for families that have them."""
    rope: Rope = field(default_factory=dict)
    """As in `rope_scaling`, with `rope_type`; empty: default."""
    legacy_rope: bool = False
    """Write `rope_scaling` and `rope_theta` (transformers 4) instead of `rope_parameters`."""
    rope_theta: float = 10_000.0
    window: int | None = None
    window_from_layer: int = 0
    num_experts: int = 4
    experts_per_token: int = 2
    expert_mlp: int = 48
    """Features of an expert, where its size has a key of its own; of the shared one too."""
    expert_form: ExpertForm | None = None
    """None: as most checkpoints of the family have it."""
    extra: Mapping[str, object] = field(default_factory=dict)
    """Keys of config.json that go before all others."""
    shard_bytes: int | None = None
    eos_token_ids: tuple[int, ...] = (END_ID,)
    seed: int = 0

    def config(self) -> dict[str, object]:
        """config.json."""
        family = FAMILIES[self.family]
        config: dict[str, object] = {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "pad_token_id": None,
            "eos_token_id": self.eos_token_ids[0] if self.eos_token_ids else None,
            "torch_dtype": self.dtype,
        }
        config[family.activation_key] = family.defaults.get(family.activation_key, "silu")
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        for key in ("attention_bias", "mlp_bias"):
            if key in family.keys:
                config[key] = self.bias
        config |= self._window(family) | self._mixture(family) | self._rope(family)
        return config | dict(self.extra)

    def form(self) -> ExpertForm:
        mixture = FAMILIES[self.family].mixture
        return self.expert_form or (mixture.forms[0] if mixture else "each")

    def _window(self, family: Family) -> dict[str, object]:
        rule = family.window
        if rule is None or (rule.full_every and self.window is None):
            return {}
        keys: dict[str, object] = {"sliding_window": self.window}
        if rule.flag:
            keys[rule.flag] = self.window is not None
        if rule.bound != "none":
            keys["max_window_layers"] = self.window_from_layer
        return keys

    def _mixture(self, family: Family) -> dict[str, object]:
        rule = family.mixture
        if rule is None:
            return {}
        keys: dict[str, object] = {rule.count_key: self.num_experts}
        keys["num_experts_per_tok"] = self.experts_per_token
        if rule.size_key != "intermediate_size":
            keys[rule.size_key] = self.expert_mlp
        if rule.shared:
            keys["shared_expert_intermediate_size"] = self.expert_mlp
        if self.form() == "mxfp4":
            keys["quantization_config"] = {"quant_method": "mxfp4"}
        return keys

    def _rope(self, family: Family) -> dict[str, object]:
        if self.legacy_rope:
            return {"rope_theta": self.rope_theta, "rope_scaling": dict(self.rope) or None}
        rope = {"rope_type": "default", "rope_theta": self.rope_theta, **self.rope}
        if not family.local_rope:
            return {"rope_parameters": rope}
        local = {"rope_type": "default", "rope_theta": family.defaults["rope_local_base_freq"]}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}


BENCH = Shape(
    dtype="bfloat16", hidden=1024, layers=8, heads=16, kv_heads=4, mlp=2816, vocab=32_000,
    context=4096,
)  # fmt: skip
"""The 155.7 M-parameter shape of the engine benchmark."""


def make_checkpoint(path: Path, shape: Shape) -> None:
    """Write the whole directory; existing files of the same names are replaced."""
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", shape.config())
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": list(shape.eos_token_ids)},
    )
    _write_weights(path, shape, read_config(path))
    _write_tokenizer(path, shape)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tensors(shape: Shape, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Large enough that logits differ clearly and no part of the model is a near no-op."""
    generator = torch.Generator().manual_seed(shape.seed)
    plus_one = config.family.norms.plus_one
    for name, size in tensor_shapes(config, Naming(experts=shape.form())).items():
        if name.endswith(QUANTISED):
            yield name, _mxfp4(name, size, generator)
            continue
        noise = torch.randn(size, generator=generator)
        if name.endswith("norm.weight"):
            value = 0.1 * noise + (0 if plus_one else 1)
        elif name.endswith(("bias", ".sinks")):
            value = 0.1 * noise if name.endswith("bias") else noise
        else:
            value = noise * (1.0 if name.endswith("embed_tokens.weight") else size[-1] ** -0.5)
        yield name, value.to(DTYPES[shape.dtype]).contiguous()


def _mxfp4(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Bytes of blocks, or scales that make the numbers about as large as the other weights."""
    if name.endswith("_blocks"):
        return torch.randint(256, size, generator=generator, dtype=torch.uint8)
    centre = 127 - round(math.log2(3 * math.sqrt(size[-1] * BLOCK)))
    return torch.randint(centre - 1, centre + 2, size, generator=generator, dtype=torch.uint8)


def _write_weights(path: Path, shape: Shape, config: ModelConfig) -> None:
    if shape.shard_bytes is None:
        save_file(dict(_tensors(shape, config)), path / "model.safetensors", {"format": "pt"})
        return
    shards: list[dict[str, Tensor]] = [{}]
    room = shape.shard_bytes
    for name, tensor in _tensors(shape, config):
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shape.shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, path / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(path / "model.safetensors.index.json", index)


def _write_tokenizer(path: Path, shape: Shape) -> None:
    """Bytes, a few merges, then filler words: every id below the vocabulary size has a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("Ġ", "the")]
    entries = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    if shape.vocab < len(entries):
        raise ValueError(f"vocab: {shape.vocab} is below {len(entries)}, the bytes and specials")
    entries += [f"Ġw{index}" for index in range(len(entries), shape.vocab)]
    vocab = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[1],
            "eos_token": SPECIAL_TOKENS[END_ID],
            "model_max_length": shape.context,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    for name in ("hidden", "layers", "heads", "kv-heads", "mlp", "vocab", "context", "seed",
                 "num-experts", "experts-per-token", "expert-mlp"):  # fmt: skip
        default = getattr(Shape, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("head-dim", "window", "shard-bytes"):
        parser.add_argument(f"--{name}", type=int, default=None)
    for name in ("tied", "bias", "legacy-rope"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--expert-form", choices=["each", "stacked", "mxfp4"], default=None)
    parser.add_argument("--extra", type=json.loads, default={}, help="JSON, keys of config.json")
    parser.add_argument("--rope", type=json.loads, default={}, help="JSON, as rope_scaling")
    parser.add_argument("--rope-theta", type=float, default=Shape.rope_theta)
    arguments = vars(parser.parse_args())
    make_checkpoint(arguments.pop("path"), Shape(**arguments))


if __name__ == "__main__":
    main()
