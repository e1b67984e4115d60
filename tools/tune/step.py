"""Whether a decode step is faster when its kernels begin before those ahead of them end.

CUDA's programmatic dependent launch (`engine.ops.triton.bound.dependent`), of a chain of layers of
an 8B Llama in a CUDA graph, as steps are: launched one by one, what the host takes would hide it.
"""

# Shapes: T tokens, K hidden size, N features out, L layers.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import HeadShape, Norm
from engine.ops.inputs import ForwardInputs
from engine.ops.triton.launch import STEP, Launch, capability
from engine.ops.triton.ops import TritonOps
from protocol.layout import KvLayout
from tools.tune import subject
from tools.tune.attention import BLOCK_TOKENS, CONTEXT, contexts
from tools.tune.subject import Subject, noise

LAYERS = 4
"""With weights of their own: together more than a GPU's L2."""
HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM = 4_096, 14_336, 32, 8, 128
SEQUENCES = 8
HOPPER = (9, 0)
Chain = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a step reads: weights [N, K] of qkv, of attention's answer, of gate and up, and of down
    for each layer, and contexts."""

    weights_L: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]
    begin_TK: Tensor  # float32
    rotations_T2D: Tensor  # float32 [T, 2, D / 2]
    norm: Norm
    inputs: ForwardInputs
    pool: KvPool


def step_subjects() -> Iterator[Subject]:
    """None on a chip before sm_90, which has no such launch."""
    device = torch.device(subject.DEVICE)
    if device.type == "cuda" and capability(device) < HOPPER:
        return
    late, early, given = Launch(), Launch(early=True), _layers()
    chains = {one: captured(chain(given, early=one.early)) for one in (late, early)}
    kernel, shape = STEP
    yield Subject(
        kernel=kernel, shape=shape, default=late, candidates=[early],
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
            heads = HeadShape(
                num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
                scale=HEAD_DIM**-0.5, layer=layer,
            )  # fmt: skip
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
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
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


def _layers() -> Layers:
    inputs = contexts(SEQUENCES, 1)
    last_T = inputs.tables_GSB[:, :, -1].long() * BLOCK_TOKENS + BLOCK_TOKENS - 1
    layout = KvLayout(
        num_layers=LAYERS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, block_tokens=BLOCK_TOKENS,
        dtype="bfloat16",
    )  # fmt: skip
    num_blocks = SEQUENCES * CONTEXT // BLOCK_TOKENS
    return Layers(
        weights_L=[
            (
                noise((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), noise(HIDDEN, HEADS * HEAD_DIM),
                noise(2 * MLP, HIDDEN), noise(HIDDEN, MLP),
            )
            for _ in range(LAYERS)
        ],
        begin_TK=noise(SEQUENCES, HIDDEN).float(),
        rotations_T2D=noise(SEQUENCES, 2, HEAD_DIM // 2).float(),
        norm=Norm(weight_K=torch.ones(HIDDEN, device=subject.DEVICE), eps=1e-6),
        inputs=replace(inputs, slots_GT=last_T),
        pool=KvPool(layout, num_blocks, device=torch.device(subject.DEVICE)),
    )  # fmt: skip


def _linears(
    ops: TritonOps, qkv: Tensor, to_hidden: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Callable[[Tensor], Tensor], ...]:
    return (
        ops.linear(qkv, None), ops.linear(to_hidden, None, added=True),
        ops.linear(gate_up, None, gated=True), ops.linear(down, None, added=True),
    )  # fmt: skip
