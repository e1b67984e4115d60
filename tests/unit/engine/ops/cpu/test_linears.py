"""The C linears and experts against their torch twins, over shapes that fit no vector."""

# Shapes: T tokens, K features in, N features out, F features of an MLP, E experts, J experts of
# a token.

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from engine.ops.contract import Activation, ExpertWeights
from engine.ops.cpu.build import load
from engine.ops.cpu.experts import NativeExperts
from engine.ops.cpu.linears import NativeLinear, OneDnnLinear, onednn_works
from engine.ops.cpu.ops import NativeOps
from engine.ops.torch_ops import TorchOps

F32, BF16 = torch.float32, torch.bfloat16
KINDS = [(F32, F32), (F32, BF16), (BF16, BF16)]
"""(activations, weights)"""


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=KINDS, ids=["f32", "bf16", "dot"])
def kind(request: pytest.FixtureRequest) -> tuple[torch.dtype, torch.dtype]:
    kind: tuple[torch.dtype, torch.dtype] = request.param
    if kind[0] == BF16 and not load().baton_dot():
        pytest.skip("this CPU does not multiply bfloat16 in pairs (AVX512-BF16)")
    return kind


def close(got: Tensor, expected: Tensor, kind: tuple[torch.dtype, torch.dtype]) -> bool:
    atol, rtol = (5e-2, 2e-2) if kind[0] == BF16 else (1e-4, 1e-4)
    return torch.allclose(got.double(), expected.double(), atol=atol, rtol=rtol)


@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (16, 8), (33, 7), (130, 64), (95, 129)])
def test_a_linear_equals_its_twin(
    kind: tuple[torch.dtype, torch.dtype], num_out: int, num_in: int
) -> None:
    weight, bias = noise(num_out, num_in, dtype=kind[1]), noise(num_out, seed=1)
    linears = [NativeLinear(load(), weight, each, io_dtype=kind[0]) for each in (bias, None)]
    for num_tokens in (0, 1, 2, 3, 4, 5, 6, 7, 13, 40):
        x = noise(num_tokens, num_in, seed=2, dtype=kind[0])
        expected = x.double() @ weight.double().T
        for linear, added in zip(linears, (bias, torch.zeros(1)), strict=True):
            got = linear(x)
            assert got.shape == (num_tokens, num_out) and got.dtype == kind[0]
            assert close(got, expected + added, kind)


def test_a_row_of_a_linear_does_not_depend_on_the_rows_beside_it(
    kind: tuple[torch.dtype, torch.dtype],
) -> None:
    linear = NativeLinear(load(), noise(75, 51, dtype=kind[1]), noise(75, seed=1), io_dtype=kind[0])
    x = noise(64, 51, seed=2, dtype=kind[0])
    together = linear(x)
    for size in range(1, 20):
        alone = torch.cat([linear(part) for part in torch.split(x, size)])
        assert torch.equal(alone, together)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_linear_that_onednn_packs_equals_its_twin(dtype: torch.dtype) -> None:
    """float32 shows that torch still has the ops we call, where bfloat16 has no hardware."""
    if dtype == BF16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 hardware: oneDNN refuses to pack")
    assert onednn_works(dtype)
    weight, bias = noise(48, 32, dtype=dtype), noise(48, seed=1)
    linear = OneDnnLinear(weight, bias)
    for num_tokens in (1, 5, 70):
        x = noise(num_tokens, 32, seed=2, dtype=dtype)
        expected = x.float() @ weight.float().T + bias
        assert torch.allclose(linear(x).float(), expected, atol=0.1, rtol=2e-2)


# -- mixtures of experts --------------------------------------------------------------------

NUM_EXPERTS, HIDDEN, WIDTH = 6, 21, 13


def expert_weights(dtype: torch.dtype, *, biased: bool) -> list[ExpertWeights]:
    return [
        ExpertWeights(
            gate_up_NK=noise(2 * WIDTH, HIDDEN, seed=4 * e, dtype=dtype) / 5,
            gate_up_bias_N=noise(2 * WIDTH, seed=4 * e + 1) if biased else None,
            down_KF=noise(HIDDEN, WIDTH, seed=4 * e + 2, dtype=dtype) / 5,
            down_bias_K=noise(HIDDEN, seed=4 * e + 3) if biased else None,
        )
        for e in range(NUM_EXPERTS)
    ]


def routed(num_tokens: int, num_chosen: int) -> tuple[Tensor, Tensor]:
    scores_TE = noise(num_tokens, NUM_EXPERTS - 1, seed=7)  # nobody chooses the last expert
    top = scores_TE.softmax(-1).topk(num_chosen)
    return top.indices, top.values


def native_experts(
    kind: tuple[torch.dtype, torch.dtype], *, biased: bool = True, activation: Activation = "silu"
) -> NativeExperts:
    ops = NativeOps(load(), io_dtype=kind[0], kv_dtype=kind[1], onednn=False)
    weights = expert_weights(kind[1], biased=biased)
    experts = ops.experts(weights, num_experts=NUM_EXPERTS, activation=activation)
    assert isinstance(experts, NativeExperts)
    return experts


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("biased", [False, True])
def test_experts_equal_their_twin(
    kind: tuple[torch.dtype, torch.dtype], activation: Activation, biased: bool
) -> None:
    mine = native_experts(kind, biased=biased, activation=activation)
    theirs = TorchOps(io_dtype=F32).experts(
        expert_weights(kind[1], biased=biased), num_experts=NUM_EXPERTS, activation=activation
    )
    for num_tokens, num_chosen in ((1, 1), (1, 3), (7, 2), (40, 3)):
        x, (ids, weights) = noise(num_tokens, HIDDEN, dtype=kind[0]), routed(num_tokens, num_chosen)
        got, expected = mine(x, ids, weights), theirs(x.float(), ids, weights)
        assert got.dtype == kind[0]
        assert close(got, expected, kind)


@pytest.mark.parametrize("change", ["gate_up_NK", "down_KF"])
def test_experts_whose_linears_do_not_fit_each_other_are_refused(change: str) -> None:
    ops = NativeOps(load(), io_dtype=F32, kv_dtype=F32, onednn=False)
    *most, last = expert_weights(F32, biased=False)
    narrow = replace(last, **{change: getattr(last, change)[:, :-2].contiguous()})
    with pytest.raises(AssertionError):
        ops.experts([*most, narrow], num_experts=NUM_EXPERTS, activation="silu")


def test_a_token_of_a_mixture_does_not_depend_on_the_tokens_beside_it(
    kind: tuple[torch.dtype, torch.dtype],
) -> None:
    experts = native_experts(kind)
    x, (ids, weights) = noise(50, HIDDEN, dtype=kind[0]), routed(50, 3)
    together = experts(x, ids, weights)
    for size in (1, 2, 7):
        parts = (torch.split(each, size) for each in (x, ids, weights))
        assert torch.equal(
            torch.cat([experts(*part) for part in zip(*parts, strict=True)]), together
        )
