"""The linears' kernels compiled for the GPUs we name, as an 8B Llama calls them, in bfloat16."""

# Shapes: T tokens, K features in, N features out, P parts.

import re
from pathlib import Path

import pytest
import torch
from support.ahead import Call, assert_fits, recorded, resources
from torch import Tensor

from engine.ops.contract import Activation, Norm
from engine.ops.triton import gated, linear, norm
from engine.ops.triton.launch import Launch
from engine.ops.triton.linears import Kind, invariant_launch
from tools.tune.linears import LINEARS, candidates

BF16, F32 = torch.bfloat16, torch.float32
ARCHS = (80, 90, 100)
FEW = Launch(block_m=16, block_n=64, block_k=64, num_warps=4, num_stages=4)
ROWS = {"few": 16, "many": 2_048}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls_of(
    kind: Kind, num_columns: int, width: int, launch: Launch, *, num_rows: int, early: bool = False,
    dtype: torch.dtype = BF16,
) -> list[Call]:  # fmt: skip
    x_TK, weight_NK = meta(num_rows, width, dtype=dtype), meta(num_columns, width, dtype=dtype)
    activation: Activation | None = "silu" if kind == "gated" else None

    def run() -> object:
        if kind == "added":
            return linear.linear_in_parts(x_TK, weight_NK, None, launch=launch, early=early)
        return linear.linear(
            x_TK, weight_NK, None, launch=launch, dtype=F32 if kind == "head" else dtype,
            activation=activation, early=early,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "sum_parts_kernel", Silent())
        return recorded(linear, "linear_kernel", run)


class Silent:
    def __getitem__(self, grid: object) -> object:
        return lambda *args, **named: None


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "num_columns", "width"), LINEARS)
def test_the_invariant_linears_fit(
    kind: Kind, num_columns: int, width: int, rows: str, arch: int, tmp_path: Path
) -> None:
    launch = invariant_launch(num_columns, width, kind, BF16)
    for call in calls_of(kind, num_columns, width, launch, num_rows=ROWS[rows]):
        assert_fits(call, arch, tmp_path)


@pytest.mark.long
def test_an_invariant_linear_in_float32_fits(tmp_path: Path) -> None:
    """A router of 128 experts."""
    launch = invariant_launch(128, 2_048, "plain", F32)
    for num_rows in ROWS.values():
        for call in calls_of("plain", 128, 2_048, launch, num_rows=num_rows, dtype=F32):
            assert_fits(call, 90, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["added", "gated"])
def test_a_linear_of_few_rows_fits_and_reads_its_weights_ahead(kind: Kind, tmp_path: Path) -> None:
    """Sixteen bytes at a time, past the registers, with copies in flight while tiles are
    multiplied."""
    (call,) = calls_of(kind, 28_672, 4_096, FEW, num_rows=16)
    assert_fits(call, 90, tmp_path)
    compiled = call.compiled(90)
    ptx = compiled.asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*;", ptx)
    assert copies and all("0x10" in one for one in copies)
    waits = [int(number) for number in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)]
    assert max(waits) >= 2, "the loop waits for every copy"


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
def test_most_that_the_tuner_tries_fit(arch: int, tmp_path: Path) -> None:
    """What spills is slow, and so is not chosen; what has no room is passed over."""
    tried = candidates("added", 4_096, 14_336, block_m=32)[3::17]
    spilling = []
    for launch in tried:
        (call,) = calls_of("added", 4_096, 14_336, launch, num_rows=32)
        if resources(call.compiled(arch).asm["cubin"], tmp_path)["SPILLS"]:
            spilling.append(launch)
    assert 3 * len(spilling) <= len(tried), spilling


@pytest.mark.slow
def test_the_sum_of_parts_fits(tmp_path: Path) -> None:
    launch = invariant_launch(6_144, 4_096, "plain", BF16)
    x_TK, weight_NK = meta(16, 4_096), meta(6_144, 4_096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "linear_kernel", Silent())
        calls = recorded(
            linear,
            "sum_parts_kernel",
            lambda: linear.linear(x_TK, weight_NK, None, launch=launch, dtype=BF16),
        )
    for call in calls:
        assert_fits(call, 90, tmp_path)


@pytest.mark.slow
def test_a_norm_that_adds_parts_fits(tmp_path: Path) -> None:
    x_TK, parts_PTK = meta(16, 4_096, dtype=F32), meta(4, 16, 4_096, dtype=F32)
    rms = Norm(weight_K=meta(4_096, dtype=F32), eps=1e-6)
    calls = recorded(norm, "norm_kernel", lambda: norm.normed(x_TK, parts_PTK, rms, dtype=BF16))
    for call in calls:
        assert_fits(call, 90, tmp_path)


@pytest.mark.slow
def test_a_dependent_launch_waits_before_it_reads() -> None:
    """The wait, then the word to the next kernel, then the first load of what another wrote."""
    x_TK, rms = meta(16, 4_096, dtype=F32), Norm(weight_K=meta(4_096, dtype=F32), eps=1e-6)
    launches = (
        recorded(norm, "norm_kernel", lambda: norm.normed(x_TK, None, rms, dtype=BF16, early=True)),
        recorded(gated, "gated_kernel", lambda: gated.gated(x_TK, "silu", dtype=BF16, early=True)),
        calls_of("plain", 6_144, 4_096, FEW, num_rows=16, early=True),
    )
    for (call,) in launches:
        assert call.options["launch_pdl"]
        ptx = call.compiled(90).asm["ptx"]
        wait, word = ptx.index("griddepcontrol.wait"), ptx.index("griddepcontrol.launch_dependents")
        first = min(ptx.find(read) % len(ptx) for read in ("ld.global", "cp.async.c"))
        assert wait < first and wait < word
