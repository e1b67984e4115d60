"""The C kernels against their torch twins, over shapes that fit no vector and no tile."""

# Shapes: T tokens, K features.

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from support.forwards import chunk
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.kvcache.windows import first_reachable
from engine.ops.choose import choose_ops
from engine.ops.contract import Activation, HeadShape, Norm, Ops
from engine.ops.cpu.build import load
from engine.ops.cpu.ops import NativeOps
from engine.ops.inputs import ForwardInputs, forward_inputs
from engine.ops.torch_ops import TorchOps
from protocol.layout import DTYPE_BYTES, KvDtype, KvLayout

F32, BF16 = torch.float32, torch.bfloat16
DTYPES = [(F32, F32), (F32, BF16), (BF16, BF16)]
NAMES: dict[torch.dtype, KvDtype] = {F32: "float32", BF16: "bfloat16"}


def native(io_dtype: torch.dtype = F32, kv_dtype: torch.dtype = F32) -> NativeOps:
    return NativeOps(load(), io_dtype=io_dtype, kv_dtype=kv_dtype, onednn=False)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norms(width: int) -> dict[str, Norm]:
    weight, bias = noise(width, seed=2), noise(width, seed=3)
    return {
        "rms": Norm(weight_K=weight, eps=1e-5),
        "layer": Norm(weight_K=weight, eps=1e-5, centred=True),
        "layer-bias": Norm(weight_K=weight, eps=1e-5, centred=True, bias_K=bias),
    }


NORMS = tuple(norms(1))


def tolerance(*dtypes: torch.dtype) -> float:
    return 2e-2 if BF16 in dtypes else 1e-5


# -- between the linears --------------------------------------------------------------------


@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [5, 8, 64, 1000])
@pytest.mark.parametrize("kind", NORMS)
def test_the_norm_equals_its_twin(io_dtype: torch.dtype, width: int, kind: str) -> None:
    x, delta = noise(3, width) + 1, noise(3, width, seed=1, dtype=io_dtype)
    norm = norms(width)[kind]
    residuals, results = [], []
    for ops in (native(io_dtype, io_dtype), TorchOps(io_dtype=io_dtype)):
        residual = x.clone()
        results.append([ops.norm(residual, d, norm).float() for d in (None, delta)])
        residuals.append(residual)
    assert torch.equal(*residuals)
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(got, expected, atol=tolerance(io_dtype), rtol=tolerance(io_dtype))


@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [5, 64])
def test_a_scaled_residual_and_a_sum_without_a_norm_equal_their_twins(
    io_dtype: torch.dtype, width: int
) -> None:
    delta = noise(3, width, seed=1, dtype=io_dtype)
    for each in (None, norms(width)["rms"]):
        residuals, results = [], []
        for ops in (native(io_dtype, io_dtype), TorchOps(io_dtype=io_dtype)):
            residuals.append(noise(3, width))
            results.append(ops.norm(residuals[-1], delta, each, delta_scale=0.22).float())
        close = tolerance(io_dtype)
        assert torch.allclose(residuals[0], residuals[1], atol=1e-6)
        assert torch.allclose(results[0], results[1], atol=close, rtol=close)
        assert not torch.equal(residuals[0], noise(3, width)), "the residual is added in place"


@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [5, 64, 100])
@pytest.mark.parametrize("kind", NORMS)
def test_the_norm_of_an_answer_equals_its_twin(
    io_dtype: torch.dtype, width: int, kind: str
) -> None:
    y, norm = noise(4, width, dtype=io_dtype) + 1, norms(width)[kind]
    got, expected = (
        ops.post_norm(y, norm).float()
        for ops in (native(io_dtype, io_dtype), TorchOps(io_dtype=io_dtype))
    )
    assert torch.allclose(got, expected, atol=tolerance(io_dtype), rtol=tolerance(io_dtype))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [3, 16, 37])
def test_the_gated_unit_equals_its_twin(
    io_dtype: torch.dtype, width: int, activation: Activation
) -> None:
    gate_up = noise(4, 2 * width, dtype=io_dtype) * 5
    gate_up[0, :3] = torch.tensor([1e4, -1e4, 0.0])
    gate_up[1, :2] = torch.tensor([1e-3, torch.nan])
    gate_up[2, width] = torch.nan
    got, expected = (
        o.gated(gate_up, activation).float()
        for o in (native(io_dtype, io_dtype), TorchOps(io_dtype=F32))
    )
    close = tolerance(io_dtype)
    assert torch.allclose(got, expected, atol=close, rtol=close, equal_nan=True)
    assert got.isnan().sum() == 2


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [3, 16, 37])
def test_a_unit_without_a_gate_equals_its_twin(
    io_dtype: torch.dtype, width: int, activation: Activation
) -> None:
    x = noise(4, width, dtype=io_dtype) * 5
    x[0, :3] = torch.tensor([1e4, -1e4, torch.nan])
    got, expected = (
        o.activated(each, activation).float()
        for o, each in ((native(io_dtype, io_dtype), x), (TorchOps(io_dtype=F32), x.float()))
    )
    close = tolerance(io_dtype)
    assert torch.allclose(got, expected, atol=close, rtol=close, equal_nan=True)
    assert got.isnan().sum() == 1


# -- the paged pool -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences as (tokens already in the pool, tokens of this step)."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_tokens: int = 8
    window: int | None = None
    normed: bool = False
    norms_whole: bool = False
    centred_norms: bool = False
    softcap: float | None = None
    sinks: bool = False
    num_turned: int | None = None
    """Dims of a head that rotate; None: all; 0: rotations are not even given."""
    sequences: Sequence[tuple[int, int]] = ((0, 5), (63, 1), (64, 1), (130, 1), (60, 70), (7, 9))

    @property
    def num_blocks(self) -> int:
        """Of each sequence."""
        return max(-(-(before + now) // self.block_tokens) for before, now in self.sequences)

    def heads(self) -> HeadShape:
        own = self.norms_whole or self.centred_norms
        num_normed = (self.num_heads, self.num_kv_heads) if own else (1, 1)
        norms = [
            1 + noise(many * self.head_dim, seed=8 + many) / 4 if self.normed else None
            for many in num_normed
        ]
        return HeadShape(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            layer=1,
            norm_eps=1e-6,
            window=self.window,
            q_norm=norms[0],
            k_norm=norms[1],
            centred_norms=self.centred_norms,
            softcap=self.softcap,
            sinks_H=noise(self.num_heads, seed=10) if self.sinks else None,
        )

    def inputs(self) -> ForwardInputs:
        """Blocks from 1 on, in any order; -1 for those that nobody can reach any more."""
        order = torch.randperm(
            len(self.sequences) * self.num_blocks, generator=torch.Generator().manual_seed(3)
        )
        tables = (1 + order).view(len(self.sequences), -1).tolist()
        for (before, _), table in zip(self.sequences, tables, strict=True):
            gone = first_reachable(before, self.window) // self.block_tokens
            table[:gone] = [-1] * gone
        chunks = [
            chunk([0] * now, start=before, table=table)
            for (before, now), table in zip(self.sequences, tables, strict=True)
        ]
        return forward_inputs(chunks, block_tokens=self.block_tokens)

    def pool(self, dtype: torch.dtype) -> KvPool:
        """Block 0, where tables point that have nothing to point to, holds NaN."""
        layout = KvLayout(
            num_layers=2,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=self.block_tokens,
            dtype=NAMES[dtype],
        )
        assert DTYPE_BYTES[layout.dtype] == dtype.itemsize
        pool = KvPool(layout, 1 + self.num_blocks * len(self.sequences))
        pool.tensor.copy_(noise(*pool.tensor.shape, seed=4))
        pool.tensor[0] = torch.nan
        return pool

    def qkv(self, dtype: torch.dtype) -> Tensor:
        num_tokens = sum(now for _, now in self.sequences)
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return noise(num_tokens, width, seed=5, dtype=dtype)


CASES = {
    "plain": Case(),
    "window": Case(window=9),
    "window-wider-than-a-tile": Case(window=70),
    "normed": Case(normed=True),
    "norms-over-all-heads": Case(normed=True, norms_whole=True),
    "layer-norms-of-each-head": Case(normed=True, centred_norms=True, num_turned=4),
    "layer-norms-of-one-head": Case(
        normed=True, centred_norms=True, num_heads=1, num_kv_heads=1, head_dim=10
    ),
    "half-of-a-head-turns": Case(num_turned=8),
    "nothing-turns": Case(num_turned=0),
    "nothing-turns-but-norms": Case(num_turned=0, normed=True),
    "softcap": Case(softcap=3.0),
    "sinks": Case(sinks=True),
    "all-at-once": Case(
        window=9, softcap=2.0, sinks=True, normed=True, num_turned=6, head_dim=80, num_heads=6
    ),
    "one-kv-head": Case(num_heads=5, num_kv_heads=1),
    "more-heads-than-rows": Case(num_heads=40, num_kv_heads=1, sequences=((0, 3), (70, 1))),
    "ungrouped": Case(num_kv_heads=4),
    "dim-of-no-vector": Case(head_dim=10),
    "wide": Case(head_dim=128, block_tokens=16),
    "block-of-one": Case(block_tokens=1),
    "block-of-three": Case(block_tokens=3),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def rotations_for(case: Case, num_tokens: int) -> Tensor | None:
    if case.num_turned == 0:
        return None
    angles = noise(num_tokens, (case.num_turned or case.head_dim) // 2, seed=6)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def stored(case: Case, ops: Ops, dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor]:
    """The rotated q and the whole pool after the step."""
    pool, qkv, inputs = case.pool(dtypes[1]), case.qkv(dtypes[0]), case.inputs()
    ops.rotate_and_store(qkv, rotations_for(case, len(qkv)), case.heads(), pool, inputs)
    return qkv[:, : case.num_heads * case.head_dim].float(), pool.tensor[1:].float()


@pytest.mark.parametrize("dtypes", DTYPES)
def test_rotated_heads_and_their_slots_equal_the_twins(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    got = stored(case, native(*dtypes), dtypes)
    expected = stored(case, TorchOps(io_dtype=dtypes[0]), dtypes)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=tolerance(*dtypes), rtol=tolerance(*dtypes))


@pytest.mark.parametrize("dtypes", DTYPES)
def test_attention_equals_its_twin(case: Case, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    pool, qkv, inputs = case.pool(dtypes[1]), case.qkv(dtypes[0]), case.inputs()
    got = native(*dtypes).attend(qkv, case.heads(), pool, inputs).float()
    expected = TorchOps(io_dtype=F32).attend(qkv.float(), case.heads(), pool, inputs)
    assert torch.allclose(got, expected, atol=tolerance(dtypes[0]), rtol=tolerance(dtypes[0]))


SAME_TYPES = [(F32, F32), (BF16, BF16)]


@pytest.mark.parametrize("dtypes", SAME_TYPES)
def test_what_nobody_can_see_is_never_read(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Slots beyond the context, before the window, and the block that stands for none."""
    inputs, pool, written = case.inputs(), case.pool(dtypes[1]), case.pool(dtypes[1])
    pool.tensor.fill_(torch.nan)
    for s, end in enumerate(inputs.ends_S.tolist()):
        for position in range(first_reachable(case.sequences[s][0], case.window), end):
            block = int(inputs.tables_GSB[0, s, position // case.block_tokens])
            place = position % case.block_tokens
            pool.tensor[block, :, :, :, place] = written.tensor[block, :, :, :, place]
    qkv = case.qkv(dtypes[0])
    got = native(*dtypes).attend(qkv, case.heads(), pool, inputs)
    assert torch.equal(got, native(*dtypes).attend(qkv, case.heads(), written, inputs))
    assert not got.isnan().any()


@pytest.mark.parametrize("dtypes", SAME_TYPES)
def test_a_query_does_not_depend_on_its_chunk_nor_on_the_batch(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Bit for bit: one token at a time, the whole chunk, and the whole ragged batch."""
    inputs, pool, qkv = case.inputs(), case.pool(dtypes[1]), case.qkv(dtypes[0])
    ops, heads = native(*dtypes), case.heads()
    together = ops.attend(qkv, heads, pool, inputs)
    starts, ends = inputs.starts_S1.tolist(), inputs.ends_S.tolist()
    for s, end in enumerate(ends):
        for t in range(starts[s], starts[s + 1]):
            alone = replace(
                inputs,
                token_ids_T=inputs.token_ids_T[:1],
                starts_S1=torch.tensor([0, 1], dtype=torch.int32),
                ends_S=torch.tensor([end - starts[s + 1] + t + 1], dtype=torch.int32),
                tables_GSB=inputs.tables_GSB[:, s : s + 1].clone(),
            )
            got = ops.attend(qkv[t : t + 1].clone(), heads, pool, alone)
            assert torch.equal(got[0], together[t])


@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_tile_of_keys_that_are_no_numbers_spoils_the_row(
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    """It must not pass for a tile that the mask hides."""
    case = Case(sequences=((130, 1), (2, 1)))
    inputs, pool = case.inputs(), case.pool(dtypes[1])
    pool.tensor[inputs.tables_GSB[0, 0, : 64 // case.block_tokens].long(), :, 0] = torch.nan
    got = native(*dtypes).attend(case.qkv(dtypes[0]), case.heads(), pool, inputs)
    assert got[0].isnan().all() and not got[1].isnan().any()


@pytest.mark.parametrize("dtypes", DTYPES)
def test_a_sink_takes_all_the_weight_or_none(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    case = Case(window=70)
    inputs, pool, qkv = case.inputs(), case.pool(dtypes[1]), case.qkv(dtypes[0])

    def attended(sink: float | None) -> Tensor:
        sinks_H = None if sink is None else torch.full((case.num_heads,), sink)
        return native(*dtypes).attend(qkv, replace(case.heads(), sinks_H=sinks_H), pool, inputs)

    assert torch.equal(attended(1e4), torch.zeros_like(qkv[:, : case.num_heads * case.head_dim]))
    assert torch.equal(attended(-torch.inf), attended(None))
    assert attended(torch.nan).isnan().all()


def test_each_layer_and_each_group_has_its_own_place() -> None:
    """The same heads twice: as another layer, and with another group's tables and slots."""
    case, ops = Case(sequences=((3, 4), (9, 1))), native()
    first = case.inputs()
    other_tables = first.tables_GSB.flip(1)
    inputs = replace(
        first,
        tables_GSB=torch.cat((first.tables_GSB, other_tables)),
        slots_GT=torch.cat((first.slots_GT, first.slots_GT.flip(1))),
    )
    for heads in (case.heads(), replace(case.heads(), layer=0), replace(case.heads(), group=1)):
        results = []
        for each in (ops, TorchOps(io_dtype=F32)):
            pool, qkv = case.pool(F32), case.qkv(F32)
            each.rotate_and_store(qkv, rotations_for(case, len(qkv)), heads, pool, inputs)
            attended = each.attend(qkv, heads, pool, inputs)
            results.append((attended, pool.tensor[1:]))
        for mine, theirs in zip(*results, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-5)


# -- the choice -----------------------------------------------------------------------------


def test_without_a_compiler_torch_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from engine.ops.cpu import build

    def no_kernels() -> None:
        raise build.NoKernels("no C compiler")

    monkeypatch.setattr(build, "load", no_kernels)
    assert choose_ops(dtype=F32).name == "torch"
    assert "no C kernels" in caplog.text
    with pytest.raises(build.NoKernels):
        choose_ops(dtype=F32, native=True)
