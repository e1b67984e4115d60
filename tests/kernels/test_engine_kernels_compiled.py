"""The engine's kernels compiled for the GPUs we name, as their launchers call them.

At the default launch parameters, with bfloat16 unless a name says otherwise; tensors are torch's
meta tensors of real sizes. Marked slow: ptxas takes a second for each.
"""

# Shapes: T tokens, H query heads, G KV heads, D head dim, K features, R rows, V vocabulary.

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ahead import Call, assert_fits, recorded
from support.meta_steps import ARCHS, BF16, EVERY_DIM, heads, inputs, layer_pool, meta
from torch import Tensor

from engine.ops.contract import Norm
from engine.ops.triton import attention, experts, gated, norm, reduce_splits, rope_store
from engine.sampling import (
    triton_bracket,
    triton_mask,
    triton_penalties,
    triton_plan,
    triton_sample,
)
from engine.sampling.penalties import PenaltyRules
from engine.sampling.rows import RowRules, logprobs

F32 = torch.float32
SAMPLING = (
    (triton_bracket, "tops_kernel"), (triton_bracket, "weigh_kernel"),
    (triton_plan, "plan_kernel"), (triton_plan, "narrow_kernel"), (triton_bracket, "pack_kernel"),
    (triton_sample, "choose_kernel"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(calls: list[Call], archs: tuple[int, ...], folder: Path) -> None:
    for call in calls:
        for arch in archs:
            assert_fits(call, arch, folder)


LAYER = [pytest.param(d, "layer", marks=[] if d == 128 else pytest.mark.long) for d in EVERY_DIM]


@pytest.mark.parametrize(
    ("dim", "norms"), [*itertools.product(EVERY_DIM, ("none", "head", "whole")), *LAYER]
)
def test_the_rotation_and_store_fits(dim: int, norms: str, tmp_path: Path) -> None:
    sizes = {"none": (), "head": (dim, dim)}.get(norms, (32 * dim, 8 * dim))
    q_norm, k_norm = (meta(size, dtype=F32) for size in sizes) if sizes else (None, None)
    shape = replace(heads(dim), q_norm=q_norm, k_norm=k_norm, centred_norms=norms == "layer")
    slots_T = meta(64, dtype=torch.int64)
    for num_turned in (dim, dim // 4, None) if dim == 96 else (dim,):
        turns = None if num_turned is None else meta(64, 2, num_turned // 2, dtype=F32)
        calls = recorded(
            rope_store,
            "rope_store_kernel",
            lambda turns=turns: rope_store.rope_store(  # type: ignore[misc]
                meta(64, 48 * dim), turns, shape, layer_pool(dim), slots_T
            ),
        )
        check(calls, ARCHS if dim == 128 else (80,), tmp_path)


@pytest.mark.parametrize("width", [896, 4096, 8192, 16_384])
def test_the_norms_fit(width: int, tmp_path: Path) -> None:
    x_TK, delta_TK, weight_K = (
        meta(64, width, dtype=F32), meta(64, width), meta(width, dtype=F32),
    )  # fmt: skip
    rms = Norm(weight_K=weight_K, eps=1e-6)
    layer = replace(rms, centred=True, bias_K=weight_K)
    launches = (
        lambda: norm.normed(x_TK, delta_TK, rms, delta_scale=0.2, dtype=BF16),
        lambda: norm.normed(x_TK, delta_TK, None, dtype=BF16),
        lambda: norm.normed(delta_TK, None, rms, dtype=BF16),
        lambda: norm.normed(x_TK, delta_TK, layer, dtype=BF16),
    )
    for launch in launches if width == 4096 else launches[:1]:
        archs = ARCHS if width == 4096 else (80,)
        check(recorded(norm, "norm_kernel", launch), archs, tmp_path)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai"])
def test_the_gates_fit(activation: str, tmp_path: Path) -> None:
    calls = recorded(
        gated,
        "gated_kernel",
        lambda: gated.gated(meta(64, 2 * 5632), activation, dtype=BF16),  # type: ignore[arg-type]
    )
    check(calls, ARCHS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(one, marks=pytest.mark.long) for one in ARCHS if one != 90)]
)
def test_the_sampler_fits(arch: int, tmp_path: Path) -> None:
    def column(dtype: torch.dtype) -> Tensor:
        return meta(64, dtype=dtype)

    rows = RowRules(
        temperature_R=column(F32),
        top_k_R=column(torch.int32),
        top_p_R=column(F32),
        min_p_R=column(F32),
        seed_R=column(torch.int64),
        position_R=column(torch.int64),
    )
    logits_RV = meta(64, 151_936, dtype=F32)
    for module, name in SAMPLING:
        with pytest.MonkeyPatch.context() as patch:
            for other, kernel in SAMPLING:
                patch.setattr(other, kernel, getattr(other, kernel) if kernel == name else Silent())
            calls = recorded(module, name, lambda: triton_sample.sample_tokens(logits_RV, rows))
        check(calls, (arch,), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_mask_fits(arch: int, tmp_path: Path) -> None:
    logits_RV, words_AW = meta(64, 151_936, dtype=F32), meta(32, 4748, dtype=torch.int32)

    def launch() -> None:
        triton_mask.mask_tokens(logits_RV, meta(32, dtype=torch.int64), words_AW)

    check(recorded(triton_mask, "mask_kernel", launch), (arch,), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_penalties_fit_and_round_as_a_cpu_does(arch: int, tmp_path: Path) -> None:
    """A product of float64 and a sum in one rounding would be another number."""
    logits_RV, counts_PV = meta(64, 151_936, dtype=F32), meta(256, 151_936, dtype=torch.int32)
    rules = PenaltyRules(
        rows_A=meta(9, dtype=torch.int64), places_A=meta(9, dtype=torch.int64),
        repetition_A=meta(9, dtype=F32), frequency_A=meta(9, dtype=torch.float64),
        presence_A=meta(9, dtype=torch.float64),
    )  # fmt: skip

    def launch() -> None:
        triton_penalties.penalise(logits_RV, counts_PV, rules)

    calls = recorded(triton_penalties, "penalise_kernel", launch)
    check(calls, (arch,), tmp_path)
    ptx = calls[0].compiled(arch).asm["ptx"]
    assert "mul.rn.f64" in ptx and "fma.rn.f64" not in ptx


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("num_tokens", [4, 2048])
def test_the_experts_fit(num_tokens: int, arch: int, tmp_path: Path) -> None:
    mixture = experts.GroupedExperts(
        gate_up_ENK=meta(128, 1536, 2048),
        gate_up_bias_EN=meta(128, 1536),
        down_EKF=meta(128, 2048, 768),
        down_bias_EK=meta(128, 2048),
        activation="silu",
    )
    ids_TJ, weights_TJ = meta(num_tokens, 8, dtype=torch.int64), meta(num_tokens, 8, dtype=F32)

    def launch() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experts, "gated", lambda gate_up, *_, **__: gate_up[:, :768])
            for name in set(kernels) - {kernel}:
                patch.setattr(experts, name, Silent())
            return mixture(meta(num_tokens, 2048), ids_TJ, weights_TJ)

    kernels = ("count_kernel", "place_kernel", "combine_kernel", "grouped_kernel")
    for kernel in kernels if num_tokens == 4 else kernels[3:]:
        check(recorded(experts, kernel, launch), (arch,), tmp_path)


class Silent:
    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **named: None


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values: whatever would read one back raises."""
    for module, name in (
        (attention, "decode_kernel"), (attention, "chunk_kernel"),
        (reduce_splits, "reduce_splits_kernel"),
        (rope_store, "rope_store_kernel"), (norm, "norm_kernel"),
        (gated, "gated_kernel"), *SAMPLING, (experts, "count_kernel"),
        (triton_mask, "mask_kernel"), (triton_penalties, "penalise_kernel"),
        (experts, "place_kernel"), (experts, "grouped_kernel"),
        (experts, "combine_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Silent())
    for num_tokens, num_sequences in ((64, 64), (100, 3)):
        given, qkv = inputs(num_tokens, num_sequences), meta(num_tokens, 48, 128)
        turns = meta(num_tokens, 2, 64, dtype=F32)
        rope_store.rope_store(
            qkv.view(num_tokens, -1), turns, heads(128), layer_pool(128), given.slots_GT[0]
        )
        assert attention.attention(qkv[:, :32], layer_pool(128), given, heads(128)).shape == (
            num_tokens, 32 * 128,
        )  # fmt: skip
    mixture = experts.GroupedExperts(
        gate_up_ENK=meta(8, 64, 32), gate_up_bias_EN=None, down_EKF=meta(8, 32, 32),
        down_bias_EK=None, activation="silu",
    )  # fmt: skip
    assert mixture(meta(5, 32), meta(5, 2, dtype=torch.int64), meta(5, 2)).shape == (5, 32)
    logits_RV, ids_R = meta(7, 100, dtype=F32), meta(7, dtype=torch.int64)
    triton_mask.mask_tokens(logits_RV, ids_R, meta(7, 4, dtype=torch.int32))
    assert logprobs(logits_RV, ids_R, num_top=3).shape == (7, 7)
