"""The kernels between the linears, and the experts, beside their twins."""

# Shapes: T tokens, G KV heads, D head dim, E experts, J experts of a token, P pairs of both.

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from support.kernel_cases import BOTH, DEVICE, OURS, TWIN, Case, check, close, noise

from engine.ops.contract import Activation, ExpertWeights, Norm
from engine.ops.triton.experts import align


@check
def norms() -> None:
    for width in (5, 64, 200):
        weight, bias = noise(width, seed=3), noise(width, seed=5)
        rms, layer = (Norm(weight_K=weight, eps=1e-5, centred=centred) for centred in (False, True))
        biased = replace(layer, bias_K=bias)
        for scale in (1.0, 0.22):
            for delta in (None, noise(3, width, seed=1)):
                for own in (None, rms, layer, biased):
                    residuals = [noise(3, width) + 1, noise(3, width) + 1]
                    results = [
                        ops.norm(x, delta, own, delta_scale=scale)
                        for ops, x in zip(BOTH, residuals, strict=True)
                    ]
                    close(results[0], results[1])
                    close(residuals[0], residuals[1])
                    assert results[0].data_ptr() != residuals[0].data_ptr()
        y = noise(4, width, seed=4)
        for norm in (rms, biased):
            close(OURS.post_norm(y, norm), TWIN.post_norm(y, norm))
        assert y.equal(noise(4, width, seed=4)), "an answer is not a residual"


@check
def gates() -> None:
    activations: tuple[Activation, ...] = ("silu", "gelu_tanh", "swiglu_oai")
    gate_up = noise(3, 2 * 1030) * 6
    gate_up[0, :4] = torch.tensor([1e4, -1e4, 0.0, torch.nan])
    gate_up[1, 1030:1033] = torch.tensor([30.0, -30.0, torch.nan])
    for activation in activations:
        with np.errstate(over="ignore"):
            close(OURS.gated(gate_up, activation), TWIN.gated(gate_up, activation))
        close(OURS.gated(gate_up[:, :6], activation), TWIN.gated(gate_up[:, :6], activation))
        if activation != "swiglu_oai":
            close(OURS.activated(gate_up, activation), TWIN.activated(gate_up, activation))


ROPES = (
    Case(),
    Case(norms="head"),
    Case(norms="whole"),
    Case(num_turned=8, norms="head"),
    Case(norms="layer"),
    Case(num_turned=6, norms="layer", head_dim=10, num_heads=3, num_kv_heads=1),
    Case(num_turned=None, norms="layer"),
    Case(num_turned=6, head_dim=10, num_heads=3, num_kv_heads=1),
    Case(num_turned=None, norms="whole"),
    Case(num_turned=None),
    Case(num_heads=40, num_kv_heads=20, head_dim=96, num_turned=96, sequences=((3, 2),)),
)


@check
def ropes() -> None:
    for case in ROPES:
        inputs, qkvs, pools = case.inputs(), [case.qkv(), case.qkv()], [case.pool(), case.pool()]
        rotations = None
        if case.num_turned is not None:
            angles = noise(len(qkvs[0]), case.num_turned // 2, seed=6)
            rotations = torch.stack((angles.cos(), angles.sin()), dim=1)
        for ops, qkv, pool in zip(BOTH, qkvs, pools, strict=True):
            ops.rotate_and_store(qkv, rotations, case.heads, pool, inputs)
        close(qkvs[0], qkvs[1])
        close(pools[0].tensor, pools[1].tensor)
        assert not pools[0].tensor[:, 1].equal(case.pool().tensor[:, 1])


@check
def alignments() -> None:
    """Every pair once, in a tile of its expert; an id that is none in no tile."""
    dice = torch.Generator().manual_seed(1)
    for num_pairs, num_experts, block_m in ((3, 5, 16), (1100, 6, 16), (64, 3, 32), (1, 1, 16)):
        ids_P = torch.randint(-1, num_experts, (num_pairs,), generator=dice, device="cpu").to(
            DEVICE
        )
        tiles = align(ids_P, num_experts=num_experts, block_m=block_m)
        listed = []
        for pairs, expert in zip(tiles.pairs.view(-1, block_m), tiles.experts, strict=True):
            if expert >= 0:
                mine = pairs[pairs < num_pairs]
                assert len(mine) and (ids_P[mine] == expert).all()
                listed += mine.tolist()
        assert sorted(listed) == torch.where(ids_P >= 0)[0].tolist()
        real = tiles.experts[tiles.experts >= 0].tolist()
        assert all(one <= next_ for one, next_ in pairwise(real))


@check
def experts() -> None:
    activations: tuple[Activation, ...] = ("silu", "swiglu_oai")
    for activation in activations:
        for bias in (True, False):
            weights = [
                ExpertWeights(
                    gate_up_NK=noise(2 * 24, 20, seed=e),
                    gate_up_bias_N=noise(2 * 24, seed=e + 10) if bias else None,
                    down_KF=noise(20, 24, seed=e + 20),
                    down_bias_K=noise(20, seed=e + 30) if bias else None,
                )
                for e in range(5)
            ]
            ours, twin = (
                ops.experts(weights, num_experts=5, activation=activation) for ops in (OURS, TWIN)
            )
            for num_tokens in (1, 21):
                x_TK = noise(num_tokens, 20, seed=7)
                order = noise(num_tokens, 4, seed=8).argsort(1)  # expert 4 has no token
                ids_TJ, weights_TJ = order[:, :2].contiguous(), noise(num_tokens, 2, seed=9)
                together = ours(x_TK, ids_TJ, weights_TJ)
                close(together, twin(x_TK, ids_TJ, weights_TJ), 1e-4)
            alone = ours(x_TK[4:5], ids_TJ[4:5], weights_TJ[4:5])
            assert alone[0].equal(together[4]), "a row depends on its token alone"
