"""Writes a random-weight Hugging Face checkpoint of any shape, for tests and benchmarks.

    python -m tools.make_checkpoint OUT --family qwen3 --hidden 128 --layers 2 ...

It loads in transformers and in Baton alike and has a byte-level BPE tokenizer and a chat template,
so it can be served; what it says is noise. The same arguments give the same bytes.
"""

# Shapes: N features out, K features in.

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from engine.checkpoint.quant.mxfp4 import BLOCK
from engine.checkpoint.tensor_names import Naming, tensor_specs
from engine.models.config import ModelConfig, read_config
from engine.models.families.table import FAMILIES
from protocol.errors import CheckpointError
from tools.checkpoint_shape import END_ID, Shape

__all__ = ["BENCH", "END_ID", "Shape", "make_checkpoint"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|end|>", "<|begin|>", "<|system|>", "<|user|>", "<|assistant|>")
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ("Ġ", "the")]

BENCH = Shape(
    dtype="bfloat16", hidden=1024, layers=8, heads=16, kv_heads=4, mlp=2816, vocab=32_000,
    context=4096,
)  # fmt: skip
"""The 155.7 M-parameter shape of the engine benchmark."""


def make_checkpoint(path: Path, shape: Shape, *, device: str = "cpu") -> None:
    """Write the whole directory; existing files of the same names are replaced. Another `device`
    makes other numbers, and large checkpoints sooner.

    CheckpointError or ValueError, before anything is written, for a shape that would not load.
    """
    config = _checked(shape)
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / "config.json", shape.config())
    _write_json(
        path / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": list(shape.eos_token_ids)},
    )
    _write_weights(path, shape, _tensors(shape, config, device))
    _write_tokenizer(path, shape)


def _checked(shape: Shape) -> ModelConfig:
    mixture = FAMILIES[shape.family].mixture
    if mixture is not None and shape.form() not in mixture.forms:
        raise ValueError(f"expert_form: {shape.family} has {' or '.join(mixture.forms)}")
    num_entries = len(_entries())
    if shape.vocab < num_entries:
        raise ValueError(f"vocab: {shape.vocab} is below {num_entries}, the bytes and specials")
    with TemporaryDirectory() as directory:
        _write_json(Path(directory) / "config.json", shape.config())
        try:
            config = read_config(Path(directory))
        except CheckpointError as error:  # its own directory says nothing
            raise CheckpointError(str(error).removeprefix(f"{directory}/")) from error
    tensor_specs(config, Naming(experts=shape.form()))
    return config


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _tensors(shape: Shape, config: ModelConfig, device: str) -> Iterator[tuple[str, Tensor]]:
    """Large enough that logits differ clearly and no part of the model is a near no-op."""
    generator = torch.Generator(device).manual_seed(shape.seed)
    plus_one = config.family.norms.plus_one
    for name, spec in tensor_specs(config, Naming(experts=shape.form())).items():
        size = spec.shape
        if spec.quantised:
            yield name, _mxfp4(name, size, generator).cpu()
            continue
        noise = torch.randn(size, generator=generator, device=device)
        if "norm" in name and name.endswith("weight"):
            value = 0.1 * noise + (0 if plus_one else 1)
        elif name.endswith(("bias", ".sinks")):
            value = 0.1 * noise if name.endswith("bias") else noise
        else:
            value = noise * (1.0 if name.endswith("embed_tokens.weight") else size[-1] ** -0.5)
        yield name, value.to(DTYPES[shape.dtype]).contiguous().cpu()


def _mxfp4(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Bytes of blocks, or scales that make the numbers about as large as the other weights."""
    if name.endswith("_blocks"):
        return _random(0, 256, size, generator)
    centre = 127 - round(math.log2(3 * math.sqrt(size[-1] * BLOCK)))
    return _random(centre - 1, centre + 2, size, generator)


def _random(low: int, high: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(
        low, high, size, generator=generator, dtype=torch.uint8, device=generator.device
    )


def _write_weights(path: Path, shape: Shape, tensors: Iterator[tuple[str, Tensor]]) -> None:
    if shape.shard_bytes is None:
        save_file(dict(tensors), path / "model.safetensors", {"format": "pt"})
        return
    shards: list[dict[str, Tensor]] = [{}]
    room = shape.shard_bytes
    for name, tensor in tensors:
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


def _entries() -> list[str]:
    """Of every tokenizer: special tokens, bytes, and what is merged of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in MERGES)]


def _write_tokenizer(path: Path, shape: Shape) -> None:
    """Bytes, a few merges, then filler words: every id below the vocabulary size has a text."""
    entries = _entries()
    entries += [f"Ġw{index}" for index in range(len(entries), shape.vocab)]
    vocab = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
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


NUMBERS = {
    "hidden": "hidden size",
    "layers": "decoder layers",
    "heads": "query heads",
    "kv-heads": "key and value heads; must divide --heads",
    "head-dim": "features of a head (default: the family's own, or --hidden over --heads)",
    "mlp": "features of the MLP, and of an expert where the family has one size for both",
    "vocab": "tokens",
    "context": "most tokens of a sequence",
    "window": "sliding window in tokens (default: none, or the family's own)",
    "window-from-layer": "first layer with the window, or first without it (qwen2_moe)",
    "num-experts": "experts of a layer",
    "experts-per-token": "experts that a token chooses",
    "expert-mlp": "features of an expert, where the family has a size for it alone",
    "shard-bytes": "most bytes of a file of weights (default: one file)",
    "seed": "of the random weights",
}
SWITCHES = {
    "tied": "the head is the embedding",
    "bias": "biases of attention and MLP",
    "legacy-rope": "write rope_scaling and rope_theta, as transformers 4 does",
}


def _parser() -> argparse.ArgumentParser:
    """Leaves out what was not given: only then may the family lack it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("path", type=Path, help="directory to write")
    parser.add_argument("--family", choices=sorted(FAMILIES), help="model_type (default: llama)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (default: float32)")
    for name, text in NUMBERS.items():
        default = getattr(Shape, name.replace("-", "_"))
        text += "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument(
        "--expert-form", choices=["each", "stacked", "mxfp4"],
        help="how experts are stored (default: as most checkpoints of the family)",
    )  # fmt: skip
    for name, text in {
        "extra": "keys of config.json that go before all others",
        "rope": "as rope_scaling of config.json",
    }.items():
        parser.add_argument(f"--{name}", type=_object, metavar="JSON", help=text)
    text = f"base of the rope (default: {Shape.rope_theta})"
    parser.add_argument("--rope-theta", type=float, metavar="X", help=text)
    return parser


def _object(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def main() -> None:
    parser = _parser()
    given = vars(parser.parse_args())
    path = given.pop("path")
    shape = Shape(**given)
    for name in shape.lacking():
        if name in given:
            parser.error(f"--{name.replace('_', '-')}: {shape.family} has none")
    try:
        if "window" in given and not any(_checked(shape).windows):
            parser.error("--window: no layer of this shape has one")
        make_checkpoint(path, shape)
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
