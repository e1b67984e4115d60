"""Whether a decode step is faster when its kernels begin before those ahead of them end.

CUDA's programmatic dependent launch (`engine.ops.triton.bound.dependent`), of a chain of layers in
a CUDA graph, as steps are: launched one by one, what the host takes would hide it.
"""

# Shapes: T tokens, K hidden size, N features out, L layers.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import HeadShape, Norm
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.launch import STEP, Launch, capability
from engine.ops.triton.linears import GpuLinear
from engine.ops.triton.ops import TritonOps
from protocol.layout import KvLayout
from tools.tune import subject
from tools.tune.attention import BLOCK_TOKENS, contexts
from tools.tune.subject import Subject, noise

LAYERS = 4
"""With weights of their own: together more than a GPU's L2."""
MLP = 3.5
"""Its width in hidden sizes: that of a Llama of 8B."""
SEQUENCES = 8
HOPPER = (9, 0)
Chain = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a step reads: weights [N, K] of qkv, of attention's answer, of gate and up, and of down
    for each layer, and contexts."""

    heads: HeadShape
    weights_L: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]
    begin_TK: Tensor  # float32
    rotations_T2D: Tensor  # float32 [T, 2, D / 2]
    norm: Norm
    inputs: ForwardInputs
    pool: KvPool


def step_subjects(num_heads: int, num_kv_heads: int, head_dim: int) -> Iterator[Subject]:
    """One; nothing is tried on a chip before sm_90, which has no such launch."""
    device = torch.device(subject.DEVICE)
    knows = device.type == "meta" or capability(device) >= HOPPER
    late, early, given = Launch(), Launch(early=True), _layers(num_heads, num_kv_heads, head_dim)
    tried = [late, early] if knows else [late]
    chains = {one: captured(chain(given, early=one.early)) for one in tried}
    kernel, shape = STEP
    yield Subject(
        kernel=kernel, shape=shape, default=late, candidates=tried[1:],
        run=lambda one: chains[one](),
    )  # fmt: skip


def chain(given: Layers, *, early: bool) -> Chain:
    """A pass over the layers; [T, K] float32, the same each time."""
    ops = TritonOps(io_dtype=torch.bfloat16, early=early)
    linears_L = [_linears(ops, *weights) for weights in given.weights_L]
    x_TK, norm = torch.empty_like(given.begin_TK), given.norm

    def run() -> Tensor:
        delta: Tensor | None = None
        x_TK.copy_(given.begin_TK)
        for layer, (to_qkv, to_hidden, gate_up, down) in enumerate(linears_L):
            heads = replace(given.heads, layer=layer)
            qkv = to_qkv(ops.norm(x_TK, delta, norm))
            ops.rotate_and_store(qkv, given.rotations_T2D, heads, given.pool, given.inputs)
            delta = to_hidden(ops.attend(qkv, heads, given.pool, given.inputs))
            delta = down(ops.gated_linear(gate_up, ops.norm(x_TK, delta, norm), "silu"))
        ops.norm(x_TK, delta, norm)
        return x_TK

    return run


def captured(run: Chain) -> Chain:
    """A replay of it; itself where there is no GPU."""
    if torch.device(subject.DEVICE).type != "cuda":
        return run
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()  # compiled, and every workspace made
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            result = run()
    return partial(_replayed, graph, result, run)


def _replayed(graph: torch.cuda.CUDAGraph, result: Tensor, _run: Chain) -> Tensor:
    """`_run` holds the memory that the graph works in."""
    graph.replay()
    return result


def _layers(num_heads: int, num_kv_heads: int, head_dim: int) -> Layers:
    inputs, hidden = contexts(SEQUENCES, 1), num_heads * head_dim
    mlp = int(MLP * hidden)
    last_T = inputs.tables_GSB[:, :, -1].long() * BLOCK_TOKENS + BLOCK_TOKENS - 1
    layout = KvLayout(
        num_layers=LAYERS, num_kv_heads=num_kv_heads, head_dim=head_dim,
        block_tokens=BLOCK_TOKENS, dtype="bfloat16",
    )  # fmt: skip
    return Layers(
        heads=HeadShape(
            num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            scale=head_dim**-0.5, layer=0,
        ),
        weights_L=[
            (
                noise((num_heads + 2 * num_kv_heads) * head_dim, hidden), noise(hidden, hidden),
                noise(2 * mlp, hidden), noise(hidden, mlp),
            )
            for _ in range(LAYERS)
        ],
        begin_TK=noise(SEQUENCES, hidden).float(),
        rotations_T2D=noise(SEQUENCES, 2, head_dim // 2).float(),
        norm=Norm(weight_K=torch.ones(hidden, device=subject.DEVICE), eps=1e-6),
        inputs=replace(inputs, slots_GT=last_T),
        pool=KvPool(layout, inputs.tables_GSB.numel(), device=torch.device(subject.DEVICE)),
    )  # fmt: skip


def _linears(
    ops: TritonOps, qkv: Tensor, to_hidden: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[GpuLinear, GpuLinear, GpuLinear, GpuLinear]:
    return (
        ops.linear(qkv, None), ops.linear(to_hidden, None, added=True),
        ops.linear(gate_up, None, gated=True), ops.linear(down, None, added=True),
    )  # fmt: skip
