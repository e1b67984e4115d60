"""The engine's kernels compiled for the GPUs we name, as their launchers call them.

At the default launch parameters, with bfloat16 unless a name says otherwise; tensors are torch's
meta tensors of real sizes. Marked slow: ptxas takes a second for each.
"""

# Shapes: T tokens, H query heads, G KV heads, D head dim, K features, R rows, V vocabulary.

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ahead import Call, assert_fits, recorded
from torch import Tensor

from engine.checkpoint.load import MAX_HEAD_DIM
from engine.ops.contract import HeadShape, Norm
from engine.ops.inputs import ForwardInputs
from engine.ops.triton import attention, experts, gated, norm, reduce_splits, rope_store
from engine.sampling import triton_bracket, triton_mask, triton_sample
from engine.sampling.rows import RowRules, logprobs

BF16, F32 = torch.bfloat16, torch.float32
ARCHS = (80, 90, 100)
SAMPLING = (
    (triton_bracket, "tops_kernel"), (triton_bracket, "weigh_kernel"),
    (triton_bracket, "plan_kernel"), (triton_bracket, "pack_kernel"),
    (triton_sample, "choose_kernel"),
)  # fmt: skip
DIMS = (64, 96, 128, 256)
EVERY_DIM = (*DIMS, MAX_HEAD_DIM)
BLOCK_TOKENS = 16


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(dim: int) -> HeadShape:
    return HeadShape(num_heads=32, num_kv_heads=8, head_dim=dim, scale=dim**-0.5, layer=1)


def layer_pool(dim: int, dtype: torch.dtype = BF16) -> Tensor:
    return meta(30_000, 32, 2, 8, BLOCK_TOKENS, dim, dtype=dtype)[:, 1]


def inputs(num_tokens: int, num_sequences: int) -> ForwardInputs:
    return ForwardInputs(
        token_ids_T=meta(num_tokens, dtype=torch.int64),
        positions_T=meta(num_tokens, dtype=torch.int64),
        slots_GT=meta(1, num_tokens, dtype=torch.int64),
        starts_S1=meta(num_sequences + 1, dtype=torch.int32),
        ends_S=meta(num_sequences, dtype=torch.int32),
        tables_GSB=meta(1, num_sequences, 8192 // BLOCK_TOKENS, dtype=torch.int32),
        rows_R=meta(num_sequences, dtype=torch.int64),
    )


def attend(
    shape: HeadShape, *, num_tokens: int, num_sequences: int, dtype: torch.dtype = BF16
) -> Callable[[], object]:
    qkv = meta(num_tokens, 48, shape.head_dim, dtype=dtype)
    given = inputs(num_tokens, num_sequences)
    pool = layer_pool(shape.head_dim, dtype)
    return lambda: attention.attention(qkv[:, :32], pool, given, shape)


def attention_calls(
    shape: HeadShape, *, num_tokens: int, num_sequences: int, dtype: torch.dtype = BF16
) -> list[Call]:
    launch = attend(shape, num_tokens=num_tokens, num_sequences=num_sequences, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "reduce_splits", lambda *args, **named: None)
        return recorded(attention, "attention_kernel", launch)


def check(calls: list[Call], archs: tuple[int, ...], folder: Path) -> None:
    for call in calls:
        for arch in archs:
            assert_fits(call, arch, folder)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dim", EVERY_DIM)
def test_attention_over_chunks_fits(dim: int, arch: int, tmp_path: Path) -> None:
    check(attention_calls(heads(dim), num_tokens=2048, num_sequences=4), (arch,), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
def test_attention_in_float16_fits(arch: int, tmp_path: Path) -> None:
    for num_tokens, num_sequences in ((2048, 4), (8, 8)):
        calls = attention_calls(
            heads(128), num_tokens=num_tokens, num_sequences=num_sequences, dtype=torch.float16
        )
        check(calls, (arch,), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dim", EVERY_DIM)
def test_attention_of_decode_in_splits_fits(dim: int, arch: int, tmp_path: Path) -> None:
    calls = attention_calls(heads(dim), num_tokens=8, num_sequences=8)
    assert calls[0].constants["SPLIT"] > 0
    check(calls, (arch,), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dim", EVERY_DIM)
def test_attention_over_chunks_in_splits_fits(dim: int, arch: int, tmp_path: Path) -> None:
    num_tokens = 65 if dim < 512 else 40  # the scratch of more would be too large
    calls = attention_calls(heads(dim), num_tokens=num_tokens, num_sequences=2)
    assert calls[0].constants["SPLIT"] > 0 and calls[0].constants["BLOCK_M"] >= 32
    check(calls, (arch,), tmp_path)


@pytest.mark.slow
def test_keys_and_values_come_sixteen_bytes_at_a_time_for_tensor_cores(tmp_path: Path) -> None:
    """Through the block tables, past the registers; decode as well as chunks."""
    for num_tokens, product in ((2048, "wgmma.mma_async"), (4, "mma.sync.aligned.m16n8k16")):
        (call,) = attention_calls(heads(128), num_tokens=num_tokens, num_sequences=4)
        ptx = call.compiled(90).asm["ptx"]
        assert product in ptx
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
        assert copies and set(copies) == {"0x10"}


@pytest.mark.slow
def test_attention_with_every_option_fits(tmp_path: Path) -> None:
    """A window, a cap and sinks; one sequence, whose count must not become a constant."""
    shape = replace(heads(128), window=128, softcap=50.0, sinks_H=meta(32, dtype=F32))
    for num_tokens in (1, 65, 512):
        check(attention_calls(shape, num_tokens=num_tokens, num_sequences=1), ARCHS, tmp_path)
    many = attention_calls(shape, num_tokens=256, num_sequences=256)
    assert many[0].constants["SPLIT"] == 0
    check(many, (80,), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dim", (64, 128, MAX_HEAD_DIM))
def test_attention_in_float32_fits(dim: int, tmp_path: Path) -> None:
    for count in (4, 64):
        calls = attention_calls(heads(dim), num_tokens=64, num_sequences=count, dtype=F32)
        check(calls, (80,) if dim == 64 else ARCHS, tmp_path)


@pytest.mark.parametrize("dim", EVERY_DIM)
def test_the_reduction_of_splits_fits(dim: int, tmp_path: Path) -> None:
    partial, limits = meta(8, 32, 8, dim, dtype=F32), meta(8, 32, 8, 2, dtype=F32)
    shape = replace(heads(dim), sinks_H=meta(32, dtype=F32), window=4096)
    calls = recorded(
        reduce_splits,
        "reduce_splits_kernel",
        lambda: reduce_splits.reduce_splits(
            partial, limits, meta(8, 32 * dim), inputs(8, 8), shape, split_tokens=1024
        ),
    )
    check(calls, ARCHS if dim == 128 else (80,), tmp_path)


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
@pytest.mark.parametrize("arch", ARCHS)
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
            for name in {"count_kernel", "place_kernel", "grouped_kernel"} - {kernel}:
                patch.setattr(experts, name, Silent())
            return mixture(meta(num_tokens, 2048), ids_TJ, weights_TJ)

    kernels = ("count_kernel", "place_kernel", "grouped_kernel")
    for kernel in kernels if num_tokens == 4 else kernels[2:]:
        check(recorded(experts, kernel, launch), (arch,), tmp_path)


class Silent:
    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **named: None


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta tensor has no values: whatever would read one back raises."""
    for module, name in (
        (attention, "attention_kernel"), (reduce_splits, "reduce_splits_kernel"),
        (rope_store, "rope_store_kernel"), (norm, "norm_kernel"),
        (gated, "gated_kernel"), *SAMPLING, (experts, "count_kernel"),
        (triton_mask, "mask_kernel"),
        (experts, "place_kernel"), (experts, "grouped_kernel"),
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
