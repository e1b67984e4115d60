"""The model that is measured, and what its steps must move and multiply at least. Pure."""

# Shapes: T tokens of a prompt, C context tokens of a sequence.

import json
from dataclasses import dataclass
from pathlib import Path

from engine.models.config import ModelConfig, read_config
from tools.make_checkpoint import Shape

LLAMA_8B = Shape(
    dtype="bfloat16", hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp=14_336,
    vocab=128_256, context=131_072,
)  # fmt: skip
TOY = Shape(
    dtype="float32", hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128, vocab=512,
    context=256,
)  # fmt: skip
BYTES = {"bfloat16": 2, "float32": 4, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Least work of a step, whatever computes it."""

    linear_parameters: int
    """Of every layer's linears: read once a step, multiplied once a token."""
    head_parameters: int
    """Read once a step, multiplied once for each row sampled."""
    attention_width: int
    """Query heads times head dim, over all layers."""
    kv_token_bytes: int
    """Keys and values of one token, all layers."""
    weight_bytes: int
    """Of one parameter."""

    def decode_bytes(self, *, batch: int, context: int) -> int:
        """Weights once, and every sequence's KV. Embedding rows, activations and what is written
        are left out: under a thousandth."""
        weights = (self.linear_parameters + self.head_parameters) * self.weight_bytes
        return weights + batch * context * self.kv_token_bytes

    def ragged_bytes(self, *, batch: int, context: int, long: int) -> int:
        """Where one sequence has `long` tokens and the others `context`."""
        return self.decode_bytes(batch=batch - 1, context=context) + long * self.kv_token_bytes

    def prefill_flops(self, num_tokens: int) -> int:
        """Of one prompt of which the last row is sampled: two for each multiply and add; half of
        the attention's square is masked, and not counted."""
        linears = 2 * self.linear_parameters * num_tokens + 2 * self.head_parameters
        return linears + 4 * self.attention_width * num_tokens * (num_tokens + 1) // 2


def costs(shape: Shape) -> Costs:
    dim = shape.head_dim or shape.hidden // shape.heads
    attention = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * dim
    return Costs(
        linear_parameters=shape.layers * (attention + 3 * shape.hidden * shape.mlp),
        head_parameters=shape.hidden * shape.vocab,
        attention_width=shape.layers * shape.heads * dim,
        kv_token_bytes=2 * shape.layers * shape.kv_heads * dim * BYTES[shape.dtype],
        weight_bytes=BYTES[shape.dtype],
    )


def part_bytes(shape: Shape, *, batch: int, context: int) -> dict[str, int]:
    """What each part of a decode step reads at least, all layers; parts that read next to nothing
    are left out. Named as in `bench.gpu.breakdown`."""
    dim, size = shape.head_dim or shape.hidden // shape.heads, BYTES[shape.dtype]
    layer, heads = shape.layers * shape.hidden * size, shape.heads * dim
    return {
        "qkv": layer * (heads + 2 * shape.kv_heads * dim),
        "attention": batch * context * costs(shape).kv_token_bytes,
        "o": layer * heads,
        "gate_up": layer * 2 * shape.mlp,
        "down": layer * shape.mlp,
        "head": shape.hidden * shape.vocab * size,
    }


def write_config(shape: Shape, directory: Path) -> ModelConfig:
    """`config.json` of the shape in `directory`, as the engine and its peers read it."""
    (directory / "config.json").write_text(json.dumps(shape.config()))
    return read_config(directory)
