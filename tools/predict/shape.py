"""The model and the step that are predicted, and what each part moves and multiplies at least."""

# Shapes: T tokens, C context tokens of a sequence, R rows sampled.

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    layers: int = 32
    hidden: int = 4_096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    mlp: int = 14_336
    vocab: int = 128_256
    itemsize: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Decodes: as many tokens as sequences. A prompt: one sequence of no context before it."""

    tokens: int
    sequences: int
    context: int
    """Of each sequence, this step's tokens included."""

    @property
    def is_decode(self) -> bool:
        return self.tokens == self.sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of one launch of a part."""

    bytes: float
    flops: float = 0.0
    launches: int = 1
    """Of the step."""


LLAMA_8B = ModelShape()
STEPS = (
    Step(tokens=1, sequences=1, context=1_024),
    Step(tokens=32, sequences=32, context=1_024),
    Step(tokens=256, sequences=256, context=1_024),
    Step(tokens=2_048, sequences=1, context=2_048),
)


def linear(shape: ModelShape, rows: int, width: int, columns: int, launches: int) -> Work:
    """Weights once, the rows in and out once."""
    moved = (width * columns + rows * (width + columns)) * shape.itemsize
    return Work(bytes=moved, flops=2.0 * rows * width * columns, launches=launches)


def works(shape: ModelShape, step: Step) -> dict[str, Work]:
    """Each part of the step, in order; the residual is float32. Of the last layer's MLP only the
    sampled rows are computed, which is left out."""
    rows, size, layers, sampled = step.tokens, shape.itemsize, shape.layers, step.sequences
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden = shape.hidden
    cached = step.sequences * step.context * 2 * kv * size
    pairs = rows * step.context if step.is_decode else rows * (rows + 1) / 2
    partial = step.sequences * -(-step.context // 512) * shape.heads * (shape.head_dim + 2) * 4
    return {
        "embedding": Work(bytes=rows * hidden * (size + 4), launches=2),
        "norm": Work(bytes=rows * hidden * (4 + 4 + 2 * size), launches=2 * layers + 1),
        "qkv": linear(shape, rows, hidden, q + 2 * kv, layers),
        "rope_store": Work(bytes=rows * (2 * q + 4 * kv) * size, launches=layers),
        "attention": Work(
            bytes=cached + 2 * rows * q * size, flops=4.0 * pairs * q, launches=layers
        ),
        "reduce_splits": Work(
            bytes=partial + rows * q * size, launches=layers if step.is_decode else 0
        ),
        "o": linear(shape, rows, q, hidden, layers),
        "gate_up": linear(shape, rows, hidden, 2 * shape.mlp, layers),
        "gated": Work(bytes=rows * 3 * shape.mlp * size, launches=layers),
        "down": linear(shape, rows, shape.mlp, hidden, layers),
        "head": linear(shape, sampled, hidden, shape.vocab, 1),
        "sample": Work(bytes=3 * sampled * shape.vocab * 4, launches=1),
    }
