"""The C kernels against their torch twins, over shapes that fit no vector and no tile."""

# Shapes: T tokens, K features in, N features out.

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from support.forwards import chunk
from torch import Tensor

from engine.inputs import ForwardInputs, forward_inputs
from engine.kvpool import KvPool
from engine.layers import TorchOps
from engine.native.build import load
from engine.native.linears import NativeLinear, OneDnnLinear, onednn_works
from engine.native.ops import NativeOps
from engine.ops import HeadShape, Ops, choose_ops
from protocol.layout import DTYPE_BYTES, KvDtype, KvLayout

F32, BF16 = torch.float32, torch.bfloat16
DTYPES = [(F32, F32), (F32, BF16), (BF16, BF16)]
NAMES: dict[torch.dtype, KvDtype] = {F32: "float32", BF16: "bfloat16"}


def native(io_dtype: torch.dtype = F32, kv_dtype: torch.dtype = F32) -> NativeOps:
    return NativeOps(load(), io_dtype=io_dtype, kv_dtype=kv_dtype, onednn=False)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerance(*dtypes: torch.dtype) -> float:
    return 2e-2 if BF16 in dtypes else 1e-5


# -- linears ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (16, 8), (33, 7), (130, 64), (95, 129)])
def test_a_linear_equals_its_twin(dtype: torch.dtype, num_out: int, num_in: int) -> None:
    weight, bias = noise(num_out, num_in, dtype=dtype), noise(num_out, seed=1)
    for num_tokens in (0, 1, 2, 3, 4, 5, 6, 7, 13, 40):
        x = noise(num_tokens, num_in, seed=2)
        got = NativeLinear(load(), weight, bias)(x)
        expected = x.double() @ weight.double().T + bias
        assert got.shape == (num_tokens, num_out)
        assert torch.allclose(got.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_of_a_linear_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    linear = NativeLinear(load(), noise(75, 50, dtype=dtype), noise(75, seed=1))
    x = noise(64, 50, seed=2)
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


# -- between the linears --------------------------------------------------------------------


@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [5, 8, 64, 1000])
def test_the_norm_equals_its_twin(io_dtype: torch.dtype, width: int) -> None:
    x, delta, weight = (
        noise(3, width),
        noise(3, width, seed=1, dtype=io_dtype),
        noise(width, seed=2),
    )
    residuals, results = [], []
    for ops in (native(io_dtype, io_dtype), TorchOps(io_dtype=io_dtype)):
        residual = x.clone()
        results.append([ops.norm(residual, d, weight, 1e-5).float() for d in (None, delta)])
        residuals.append(residual)
    assert torch.equal(*residuals)
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(got, expected, atol=tolerance(io_dtype), rtol=tolerance(io_dtype))


@pytest.mark.parametrize("io_dtype", [F32, BF16])
@pytest.mark.parametrize("width", [3, 16, 37])
def test_the_gated_unit_equals_its_twin(io_dtype: torch.dtype, width: int) -> None:
    gate_up = noise(4, 2 * width, dtype=io_dtype) * 5
    gate_up[0, :3] = torch.tensor([1e4, -1e4, 0.0])
    got, expected = (
        o.gated(gate_up, "silu").float()
        for o in (native(io_dtype, io_dtype), TorchOps(io_dtype=F32))
    )
    assert torch.allclose(got, expected, atol=tolerance(io_dtype), rtol=tolerance(io_dtype))


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
    sequences: Sequence[tuple[int, int]] = ((0, 5), (63, 1), (64, 1), (130, 1), (60, 70), (7, 9))

    @property
    def num_blocks(self) -> int:
        """Of each sequence."""
        return max(-(-(before + now) // self.block_tokens) for before, now in self.sequences)

    def heads(self) -> HeadShape:
        norms = [
            1 + noise(self.head_dim, seed=seed) / 4 if self.normed else None for seed in (8, 9)
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
        )

    def inputs(self) -> ForwardInputs:
        order = torch.randperm(
            len(self.sequences) * self.num_blocks, generator=torch.Generator().manual_seed(3)
        )
        tables = order.view(len(self.sequences), -1).tolist()
        chunks = [
            chunk([0] * now, start=before, table=table)
            for (before, now), table in zip(self.sequences, tables, strict=True)
        ]
        return forward_inputs(chunks, block_tokens=self.block_tokens)

    def pool(self, dtype: torch.dtype, *, fill: float | None = None) -> KvPool:
        layout = KvLayout(
            num_layers=2,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=self.block_tokens,
            dtype=NAMES[dtype],
        )
        assert DTYPE_BYTES[layout.dtype] == dtype.itemsize
        pool = KvPool(layout, self.num_blocks * len(self.sequences))
        pool.tensor.copy_(noise(*pool.tensor.shape, seed=4))
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


def rotations_for(case: Case, num_tokens: int) -> Tensor:
    angles = noise(num_tokens, case.head_dim // 2, seed=6)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def stored(case: Case, ops: Ops, dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor]:
    """The rotated q and the whole pool after the step."""
    pool, qkv, inputs = case.pool(dtypes[1]), case.qkv(dtypes[0]), case.inputs()
    ops.rotate_and_store(qkv, rotations_for(case, len(qkv)), case.heads(), pool, inputs)
    return qkv[:, : case.num_heads * case.head_dim].float(), pool.tensor.float()


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


def test_what_lies_beyond_the_context_is_never_read(case: Case) -> None:
    inputs, pool, written = case.inputs(), case.pool(F32), case.pool(F32)
    pool.tensor.fill_(torch.nan)
    for s, end in enumerate(inputs.ends_S.tolist()):
        for position in range(end):
            block = int(inputs.tables_GSB[0, s, position // case.block_tokens])
            place = position % case.block_tokens
            pool.tensor[block, :, :, :, place] = written.tensor[block, :, :, :, place]
    qkv = case.qkv(F32)
    got = native().attend(qkv, case.heads(), pool, inputs)
    assert torch.equal(got, native().attend(qkv, case.heads(), written, inputs))
    assert not got.isnan().any()


def test_a_query_does_not_depend_on_its_chunk_nor_on_the_batch(case: Case) -> None:
    """Bit for bit: one token at a time, the whole chunk, and the whole ragged batch."""
    inputs, pool, qkv, ops = case.inputs(), case.pool(F32), case.qkv(F32), native()
    together = ops.attend(qkv, case.heads(), pool, inputs)
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
            got = ops.attend(qkv[t : t + 1].clone(), case.heads(), pool, alone)
            assert torch.equal(got[0], together[t])


# -- the choice -----------------------------------------------------------------------------


def test_without_a_compiler_torch_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from engine.native import build

    def no_kernels() -> None:
        raise build.NoKernels("no C compiler")

    monkeypatch.setattr(build, "load", no_kernels)
    assert choose_ops(dtype=F32).name == "torch"
    assert "no C kernels" in caplog.text
    with pytest.raises(build.NoKernels):
        choose_ops(dtype=F32, native=True)
