"""What `python -m bench.gpu` measures, at which size, and the least share of its limit."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.gpu.engine_side import Load
from bench.gpu.peers import Peer
from bench.gpu.shapes import LLAMA_8B, TOY
from engine.models.model import Dtype
from tools.make_checkpoint import Shape

BARS = {"decode_b1": 0.65, "decode_b32": 0.65, "decode_b256": 0.60, "prefill_2048": 0.60}
"""Least shares of the limits."""
Results = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    shape: Shape
    load: Load
    peers: tuple[Peer, ...]
    copy_bytes: int
    matrix_size: int

    @property
    def dtype(self) -> Dtype:
        return "bfloat16" if self.shape.dtype == "bfloat16" else "float32"


REAL = Plan(
    shape=LLAMA_8B,
    load=Load(
        batches=(1, 32, 256), context=1024, prompt=2048, num_steps=16, long=65_536,
        max_context=131_072, chunk=512,
    ),
    peers=(
        Peer(kind="static", batch=1, context=1024, steps=32),
        Peer(kind="static", batch=32, context=1024, steps=32),
        Peer(kind="paged", batch=32, context=1024, steps=32),
    ),
    copy_bytes=2 << 30,
    matrix_size=8192,
)  # fmt: skip
SMALL = Plan(
    shape=TOY,
    load=Load(
        batches=(1, 2, 4), context=40, prompt=64, num_steps=2, long=120, max_context=256, chunk=16
    ),
    peers=(
        Peer(kind="static", batch=1, context=24, steps=6),
        Peer(kind="paged", batch=2, context=24, steps=6),
    ),
    copy_bytes=1 << 20,
    matrix_size=128,
)
