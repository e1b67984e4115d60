"""Attention compiled for the GPUs we name, as its launcher calls it: does it fit, does it overlap.

At the default launch parameters, with bfloat16 unless a name says otherwise. Marked slow: ptxas
takes seconds for each.
"""

import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ahead import Call, assert_fits, assert_kernel_fits, recorded
from support.meta_steps import ARCHS, BF16, EVERY_DIM, heads, inputs, layer_pool, meta

from engine.checkpoint.load import MAX_HEAD_DIM
from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton import attention, launch, reduce_splits
from engine.ops.work import Pass, slots, work

F32 = torch.float32
KINDS = {"decode_kernel": (8, 8), "chunk_kernel": (2048, 4)}
"""Tokens and sequences of a step with this kernel alone."""
CAPABILITIES = {80: (8, 0), 90: (9, 0), 100: (10, 0)}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def call_of(
    kernel: str, shape: HeadShape, arch: int, *, dtype: torch.dtype = BF16,
    given: ForwardInputs | None = None, num_tokens: int = 0, uniform: bool = False,
    early: bool = False,
) -> Call:  # fmt: skip
    """As attention launches it on a chip of the architecture."""
    tokens, sequences = KINDS[kernel]
    qkv = meta(num_tokens or tokens, 48, shape.head_dim, dtype=dtype)
    given = given or inputs(tokens, sequences)
    pool = layer_pool(shape.head_dim, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "capability", lambda device: CAPABILITIES[arch])
        patch.setattr(launch, "capability", lambda device: CAPABILITIES[arch])
        patch.setattr(attention, "reduce_splits", lambda *args, **named: None)
        for other in KINDS.keys() - {kernel}:
            patch.setattr(attention, other, Silent())
        attention.bound_of.cache_clear()
        (call,) = recorded(
            attention, kernel,
            lambda: attention.attention(
                qkv[:, :32], pool, given, shape, uniform=uniform, early=early
            ),
        )  # fmt: skip
    attention.bound_of.cache_clear()
    return call


class Silent:
    def __getitem__(self, grid: object) -> object:
        return lambda *args, **named: None


@cache
def compiled_once(kernel: str, dim: int, arch: int) -> Any:
    return call_of(kernel, heads(dim), arch).compiled(arch)


EVERY_ONE = [
    pytest.param(
        kernel, dim, arch, marks=[] if dim in (64, 128, MAX_HEAD_DIM) else pytest.mark.long
    )
    for kernel, dim, arch in itertools.product(KINDS, EVERY_DIM, ARCHS)
]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dim", "arch"), EVERY_ONE)
def test_attention_fits(kernel: str, dim: int, arch: int, tmp_path: Path) -> None:
    assert_kernel_fits(compiled_once(kernel, dim, arch), arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dim", "arch"), EVERY_ONE)
def test_the_next_tile_is_on_its_way_while_one_is_computed(
    kernel: str, dim: int, arch: int
) -> None:
    """The loop over keys waits with copies in flight, in Triton's code and in the assembler's."""
    compiled = compiled_once(kernel, dim, arch)
    assert min(waits_in_the_innermost_loop(compiled.asm["ttgir"])) >= 1
    assert any(
        int(left) >= 1 for left in re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx(compiled))
    )


def waits_in_the_innermost_loop(ttgir: str) -> list[int]:
    """Copies that may be under way still after each wait of the deepest loop that waits."""
    found = list[tuple[int, int]]()
    loops = list[int]()
    for line in ttgir.splitlines():
        indent = len(line) - len(line.lstrip())
        while loops and indent <= loops[-1]:
            loops.pop()
        if "scf.for" in line or "scf.while" in line:
            loops.append(indent)
        elif wait := re.search(r"async_wait .*num = (\d+)", line):
            found.append((len(loops), int(wait[1])))
    deepest = max(depth for depth, _ in found)
    assert deepest > 0, "no loop waits for a copy"
    return [number for depth, number in found if depth == deepest]


def ptx(compiled: Any) -> str:
    return str(compiled.asm["ptx"])


@pytest.mark.slow
def test_keys_and_values_come_sixteen_bytes_at_a_time_for_tensor_cores() -> None:
    """Through the block tables, past the registers; decode as well as chunks."""
    products = {"chunk_kernel": "wgmma.mma_async", "decode_kernel": "mma.sync.aligned.m16n8k16"}
    for kernel, product in products.items():
        code = ptx(compiled_once(kernel, 128, 90))
        assert product in code
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", code)
        assert copies and set(copies) == {"0x10"}


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", KINDS)
def test_attention_with_every_option_fits(kernel: str, arch: int, tmp_path: Path) -> None:
    shape = heads(128, window=128, softcap=50.0, sinks_H=meta(32, dtype=F32))
    assert_fits(call_of(kernel, shape, arch), arch, tmp_path)
    assert_fits(call_of(kernel, heads(128), arch, dtype=torch.float16), arch, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("dim", (64, 128, MAX_HEAD_DIM))
@pytest.mark.parametrize("kernel", KINDS)
def test_attention_in_float32_fits(kernel: str, dim: int, tmp_path: Path) -> None:
    for arch in (80,) if dim == 64 else ARCHS:
        assert_fits(call_of(kernel, heads(dim), arch, dtype=F32), arch, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
def test_uniform_attention_fits(arch: int, tmp_path: Path) -> None:
    for kernel in KINDS:
        assert_fits(call_of(kernel, heads(128), arch, uniform=True), arch, tmp_path)


def test_no_request_waits_for_a_compiler() -> None:
    """One kernel of decodes whatever their number and lengths, and one of chunks."""
    for kernel, steps in {
        "decode_kernel": [[(1, 9)], [(1, 70_000)] * 3, [(1, 900)] * 256, [(1, 9), (40, 0)]],
        "chunk_kernel": [[(2, 0)], [(2_048, 0)], [(16, 70_000)], [(1, 9), (40, 0), (9, 9_000)]],
    }.items():
        calls = [
            call_of(kernel, heads(128), 90, given=given, num_tokens=len(given.token_ids_T))
            for given in map(cut, steps)
        ]
        assert all(replace(one, kernel=None) == replace(calls[0], kernel=None) for one in calls)


def cut(sequences: list[tuple[int, int]]) -> ForwardInputs:
    """A step of sequences as (tokens of this step, tokens before them)."""
    lengths_S, befores_S = torch.tensor(sequences).T.numpy()
    slots_GS1 = slots(lengths_S, lengths_S + befores_S, [None])
    plain = inputs(int(lengths_S.sum()), len(sequences))
    return replace(plain, work=work(lengths_S, slots_GS1))


@pytest.mark.parametrize("dim", EVERY_DIM)
def test_the_reduction_of_splits_fits(dim: int, tmp_path: Path) -> None:
    for uniform in (False, True) if dim == 128 else (False,):
        call = reduction(dim, uniform=uniform)
        for arch in ARCHS if dim == 128 else (80,):
            assert_fits(call, arch, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kernel", (*KINDS, "reduce_splits_kernel"))
def test_a_dependent_launch_waits_before_it_reads(kernel: str, tmp_path: Path) -> None:
    """Nothing is loaded, and no program ends, before the kernel ahead has."""
    call = (
        call_of(kernel, heads(128), 90, early=True)
        if kernel in KINDS
        else reduction(128, early=True)
    )
    assert call.options["launch_pdl"]
    compiled = call.compiled(90)
    assert_kernel_fits(compiled, 90, tmp_path)
    code = ptx(compiled)
    wait, word = code.index("griddepcontrol.wait"), code.index("griddepcontrol.launch_dependents")
    first = min(code.find(one) % len(code) for one in ("ld.global", "cp.async.c", "ret;"))
    assert wait < first and wait < word


def reduction(dim: int, *, uniform: bool = False, early: bool = False) -> Call:
    part = Pass(first=0, last=8, first_slot=0, num_slots=8, joined=True)
    scratch = meta(8 * 32 * (dim + 2), dtype=F32)
    shape = heads(dim, window=4096, sinks_H=meta(32, dtype=F32))
    reduce_splits.bound_reduction.cache_clear()
    (call,) = recorded(
        reduce_splits, "reduce_splits_kernel",
        lambda: reduce_splits.reduce_splits(
            scratch, meta(8, 32 * dim), inputs(8, 8), shape, part, uniform=uniform, early=early
        ),
    )  # fmt: skip
    return call
