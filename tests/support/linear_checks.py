"""The linears in tiles beside torch's, and the bits of their rows whatever the batch."""

# Shapes: T tokens, K features in, N features out, P parts.

from contextlib import nullcontext

import torch
from support.kernel_cases import BF16, DEVICE, F32, INTERPRETED, TWIN, check, close, noise
from support.row_products import placeless_products
from torch import Tensor

from engine.ops.contract import Activation, Norm
from engine.ops.triton.launch import Launch
from engine.ops.triton.linear import linear, linear_in_parts
from engine.ops.triton.linears import GpuLinear, invariant_launch
from engine.ops.triton.ops import TritonOps

WHOLE = Launch(block_m=16, block_n=32, block_k=32, num_stages=1)
SPLIT = Launch(block_m=16, block_n=32, block_k=32, num_stages=1, splits=3)
ROWS = (1, 16, 33)
FEATURES = ((40, 200), (8, 24))
INVARIANT = TritonOps(io_dtype=F32, batch_invariant=True)


@check
def linears() -> None:
    """Of any number of rows, tiles that do not fit, with splits and without."""
    for num_out, num_in in FEATURES:
        weight_NK, bias_N = noise(num_out, num_in, seed=1), noise(num_out, seed=2)
        for count in ROWS:
            x_TK = noise(count, num_in)
            for bias in (None, bias_N):
                expected = TWIN.linear(weight_NK, bias)(x_TK)
                for launch in (WHOLE, SPLIT):
                    got = linear(x_TK, weight_NK, bias, launch=launch, dtype=F32)
                    close(got, expected, 1e-4)
                    parts_PTN = linear_in_parts(x_TK, weight_NK, bias, launch=launch)
                    close(parts_PTN.sum(0), expected, 1e-4)
                    assert linear(x_TK, weight_NK, bias, launch=launch, dtype=F32).equal(got)
    assert linear(noise(0, 24), weight_NK, None, launch=SPLIT, dtype=F32).shape == (0, 8)


@check
def gated_linears() -> None:
    activations: tuple[Activation, ...] = ("silu", "gelu_tanh", "swiglu_oai")
    for width in (33,):
        weight_NK, bias_N = noise(2 * width, 50, seed=1), noise(2 * width, seed=2)
        for activation in activations:
            for bias in (None, bias_N):
                twin = TWIN.linear(weight_NK, bias)
                for count in (1, 17):
                    x_TK = noise(count, 50)
                    expected = TWIN.gated_linear(twin, x_TK, activation)
                    got = linear(
                        x_TK, weight_NK, bias, launch=WHOLE, dtype=F32, activation=activation
                    )
                    close(got, expected, 1e-4)
                    ours = INVARIANT.linear(weight_NK, bias, gated=True)
                    close(INVARIANT.gated_linear(ours, x_TK, activation), expected, 1e-4)


@check
def a_norm_adds_the_parts_of_a_linear() -> None:
    """As it adds what they sum to, to the residual too."""
    weight_NK, norm = noise(48, 96, seed=1), Norm(weight_K=noise(48, seed=3), eps=1e-5)
    for count in (1, 20):
        y_TK, x_TK, twin_TK = noise(count, 96), noise(count, 48, seed=5), noise(count, 48, seed=5)
        parts_PTN = linear_in_parts(y_TK, weight_NK, None, launch=SPLIT)
        assert parts_PTN.shape == (3 if count == 1 else 1, count, 48)
        got = INVARIANT.norm(x_TK, parts_PTN, norm, delta_scale=0.5)
        expected = TWIN.norm(twin_TK, TWIN.linear(weight_NK, None)(y_TK), norm, delta_scale=0.5)
        close(got, expected, 1e-4)
        close(x_TK, twin_TK, 1e-4)


def by_rows(whole: Tensor, part: Tensor, first: int) -> None:
    """Bits of rows first .. of the whole."""
    assert part.equal(whole[..., first : first + part.shape[-2], :]), "a row depends on others"


@check
def a_row_of_an_invariant_linear_depends_on_itself_alone() -> None:
    """Alone, in a few, in many, at another place of a chunk; the parts once they are summed."""
    with placeless_products() if INTERPRETED else nullcontext():
        rows_of_invariant_linears()


def rows_of_invariant_linears() -> None:
    norm = Norm(weight_K=noise(48, seed=3), eps=1e-5)
    launches = (SPLIT, invariant_launch(48, 200, "plain", F32))
    for dtype in (F32,) if INTERPRETED else (F32, BF16):
        weight_NK, bias_N = noise(48, 200, seed=1).to(dtype), noise(48, seed=2).to(dtype)
        x_TK, residual_TK = noise(42, 200).to(dtype), noise(42, 48, seed=4)
        for launch in launches:
            whole = linear(x_TK, weight_NK, bias_N, launch=launch, dtype=dtype)
            summed = INVARIANT.norm(
                residual_TK.clone(), linear_in_parts(x_TK, weight_NK, bias_N, launch=launch), norm
            )
            gated = linear(x_TK, weight_NK, bias_N, launch=WHOLE, dtype=dtype, activation="silu")
            for first, count in ((41, 1), (7, 5), (3, 33)):
                rows = x_TK[first : first + count]
                by_rows(whole, linear(rows, weight_NK, bias_N, launch=launch, dtype=dtype), first)
                parts_PTN = linear_in_parts(rows, weight_NK, bias_N, launch=launch)
                residual = residual_TK[first : first + count].clone()
                by_rows(summed, INVARIANT.norm(residual, parts_PTN, norm), first)
                again = linear(
                    rows, weight_NK, bias_N, launch=WHOLE, dtype=dtype, activation="silu"
                )
                by_rows(gated, again, first)


@check
def a_head_answers_float32_where_it_is_told() -> None:
    weight_NK, x_RK = noise(300, 32, seed=1), noise(3, 32)
    for bias in (None, noise(300, seed=2)):
        expected = TWIN.linear(weight_NK, bias)(x_RK)
        for ops in (TWIN, TritonOps(io_dtype=F32), INVARIANT):
            room = torch.full((8, 300), torch.nan, device=DEVICE)
            answered = ops.head(weight_NK, bias)(x_RK, room[:3])
            assert answered.data_ptr() == room.data_ptr() and room[3:].isnan().all()
            close(room[:3], expected, 1e-4)
            close(ops.head(weight_NK, bias)(x_RK), expected, 1e-4)
    narrow = GpuLinear(weight_NK.to(BF16), None, "head")
    assert narrow(x_RK.to(BF16)).dtype == F32
