"""The kernels of a device beside their torch twins on the same device.

On a GPU these are the Triton kernels, in both dtypes; elsewhere the C kernels in float32, so that
what is compared, and how, is known to run.
"""

# Shapes: T tokens, K features, N features out, F of an MLP, E experts, J experts of a token.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from support.forwards import chunk
from support.gpu import why_no_gpu
from support.host_device import HostDevice
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.choose import choose_ops
from engine.ops.contract import Activation, ExpertWeights, HeadShape, Norm, Ops
from engine.ops.inputs import ForwardInputs
from engine.ops.torch_ops import TorchOps
from engine.runner.gpu.arrays import NO_FEED, padded, step_arrays
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import ops_for
from engine.runner.gpu.upload import Upload
from protocol.layout import KvDtype, KvLayout

F32, BF16 = torch.float32, torch.bfloat16
NAMES: dict[torch.dtype, KvDtype] = {F32: "float32", BF16: "bfloat16"}
TOLERANCES = {F32: 1e-4, BF16: 3e-2}
ON_GPU = pytest.mark.gpu


@dataclass(frozen=True, kw_only=True)
class Rivals:
    device: Device
    dtype: torch.dtype
    kernels: Ops
    twins: TorchOps

    def noise(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device.where, self.dtype)

    def close(self, got: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCES[self.dtype]
        torch.testing.assert_close(got.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread would only wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("host", F32), id="host-float32"),
        pytest.param(("cuda", F32), id="cuda-float32", marks=ON_GPU),
        pytest.param(("cuda", BF16), id="cuda-bfloat16", marks=ON_GPU),
    ],
)
def rivals(request: pytest.FixtureRequest) -> Rivals:
    kind, dtype = request.param
    if kind == "host":
        kernels = choose_ops(dtype=dtype, native=True)
        return Rivals(
            device=HostDevice(), dtype=dtype, kernels=kernels, twins=TorchOps(io_dtype=dtype)
        )
    if why := why_no_gpu():
        pytest.skip(why)
    from engine.runner.gpu.cuda import CudaDevice

    device = CudaDevice(0)
    kernels = ops_for(device, dtype=dtype)
    return Rivals(device=device, dtype=dtype, kernels=kernels, twins=TorchOps(io_dtype=dtype))


@pytest.mark.parametrize("width", [64, 1000, 4096])
@pytest.mark.parametrize("centred", [False, True])
def test_a_norm_equals_its_twin(rivals: Rivals, width: int, centred: bool) -> None:
    weight_K, delta_TK = rivals.noise(width, seed=2).float(), rivals.noise(5, width, seed=1)
    bias_K = rivals.noise(width, seed=3).float() if centred else None
    norm = Norm(weight_K=weight_K, eps=1e-5, centred=centred, bias_K=bias_K)
    residuals, results = [], []
    for ops in (rivals.kernels, rivals.twins):
        x_TK = rivals.noise(5, width).float()
        results.append([ops.norm(x_TK, delta, norm) for delta in (None, delta_TK)])
        residuals.append(x_TK)
    rivals.close(*residuals)
    for got, expected in zip(*results, strict=True):
        rivals.close(got, expected)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai"])
def test_a_gated_unit_equals_its_twin(rivals: Rivals, activation: Activation) -> None:
    gate_up = rivals.noise(7, 2 * 1408) * 3
    rivals.close(rivals.kernels.gated(gate_up, activation), rivals.twins.gated(gate_up, activation))
    if activation != "swiglu_oai":
        alone = (ops.activated(gate_up, activation) for ops in (rivals.kernels, rivals.twins))
        rivals.close(*alone)


def test_a_linear_equals_its_twin(rivals: Rivals) -> None:
    weight_NK, bias_N = rivals.noise(130, 256) / 16, rivals.noise(130, seed=1).float()
    x_TK = rivals.noise(9, 256, seed=2)
    results = [
        ops.linear(weight_NK.clone(), bias_N)(x_TK) for ops in (rivals.kernels, rivals.twins)
    ]
    rivals.close(*results)


def test_experts_equal_their_twin(rivals: Rivals) -> None:
    def weights() -> list[ExpertWeights]:
        return [
            ExpertWeights(
                gate_up_NK=rivals.noise(2 * 96, 64, seed=10 + e) / 8,
                gate_up_bias_N=None,
                down_KF=rivals.noise(64, 96, seed=20 + e) / 8,
                down_bias_K=None,
            )
            for e in range(6)
        ]

    x_TK = rivals.noise(11, 64)
    scores_TE = rivals.noise(11, 6, seed=3).float()
    weights_TJ, ids_TJ = scores_TE.softmax(1).topk(2, dim=1)
    results = [
        ops.experts(weights(), num_experts=6, activation="silu")(x_TK, ids_TJ, weights_TJ)
        for ops in (rivals.kernels, rivals.twins)
    ]
    rivals.close(*results)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences as (tokens already in the pool, tokens of this step)."""

    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    block_tokens: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    sequences: Sequence[tuple[int, int]] = ((0, 5), (63, 1), (64, 1), (130, 1), (60, 70))

    @property
    def num_blocks(self) -> int:
        """Of each sequence."""
        return max(-(-(before + now) // self.block_tokens) for before, now in self.sequences)


CHUNKS = {
    "plain": Case(),
    "wide": Case(head_dim=128, num_heads=32, num_kv_heads=8),
    "window": Case(window=70),
    "capped": Case(softcap=20.0),
    "sinks": Case(sinks=True),
    "ungrouped": Case(num_heads=4, num_kv_heads=4),
}
DECODES = {
    "few": Case(sequences=((5, 1), (1500, 1), (2047, 1))),
    "many": Case(sequences=tuple((17 * n, 1) for n in range(40))),
    "window": Case(window=100, sequences=((5, 1), (1500, 1))),
}


def layout(case: Case, dtype: torch.dtype) -> KvLayout:
    return KvLayout(
        num_layers=2, num_kv_heads=case.num_kv_heads, head_dim=case.head_dim,
        block_tokens=case.block_tokens, dtype=NAMES[dtype],
    )  # fmt: skip


def heads_of(case: Case, rivals: Rivals) -> HeadShape:
    return HeadShape(
        num_heads=case.num_heads, num_kv_heads=case.num_kv_heads, head_dim=case.head_dim,
        scale=case.head_dim**-0.5, layer=1, window=case.window, softcap=case.softcap,
        sinks_H=rivals.noise(case.num_heads, seed=7).float() if case.sinks else None,
    )  # fmt: skip


def inputs_of(case: Case, rivals: Rivals, *, size: int | None = None) -> ForwardInputs:
    """As a step brings them; filled up to `size` rows where that is given."""
    count = len(case.sequences)
    order = torch.randperm(count * case.num_blocks, generator=torch.Generator().manual_seed(3))
    tables = order.view(count, -1).tolist()
    chunks = [
        chunk([0] * now, start=before, table=table)
        for (before, now), table in zip(case.sequences, tables, strict=True)
    ]
    step = step_arrays(
        chunks, layout(case, rivals.dtype), feeds=[NO_FEED] * count, keeps=range(count)
    )
    if size is not None:
        step = padded(step, size, nowhere=0)
    sent = Upload(rivals.device, num_bytes=1 << 20).upload_step(step)
    return sent.inputs(sent.token_ids_T, sent.tables_GSB)


def attended(
    ops: Ops, case: Case, rivals: Rivals, *, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """What a layer answers, and the pool after it."""
    inputs, heads = inputs_of(case, rivals, size=size), heads_of(case, rivals)
    pool = KvPool(
        layout(case, rivals.dtype), case.num_blocks * len(case.sequences),
        device=rivals.device.where,
    )  # fmt: skip
    pool.tensor.copy_(rivals.noise(*pool.tensor.shape, seed=4))
    width = (case.num_heads + 2 * case.num_kv_heads) * case.head_dim
    # Rows are drawn one after another, so that those that fill up come after the real ones.
    qkv = rivals.noise(len(inputs.token_ids_T), width, seed=5)
    angles = rivals.noise(len(inputs.token_ids_T), case.head_dim // 2, seed=6).float()
    rotations_T2D = torch.stack((angles.cos(), angles.sin()), dim=1)
    ops.rotate_and_store(qkv, rotations_T2D, heads, pool, inputs)
    return ops.attend(qkv, heads, pool, inputs), pool.tensor


@pytest.mark.parametrize("name", [*CHUNKS, *(f"decode {name}" for name in DECODES)])
def test_a_layer_over_the_pool_equals_its_twin(rivals: Rivals, name: str) -> None:
    case = DECODES[name[7:]] if name.startswith("decode ") else CHUNKS[name]
    for got, expected in zip(
        attended(rivals.kernels, case, rivals), attended(rivals.twins, case, rivals), strict=True
    ):
        rivals.close(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", DECODES)
def test_rows_that_fill_a_batch_up_change_neither_the_others_nor_the_pool(
    rivals: Rivals, name: str
) -> None:
    """Of the kernels that captured steps run; a fill row's slot is -1 and its context empty."""
    if rivals.device.where.type == "cpu":
        pytest.skip("the C kernels are never given such rows")
    case = DECODES[name]
    count = len(case.sequences)
    alone, pool_alone = attended(rivals.kernels, case, rivals)
    filled, pool_filled = attended(rivals.kernels, case, rivals, size=count + 5)
    assert torch.equal(pool_alone, pool_filled)
    rivals.close(filled[:count], alone)
    assert filled[count:].isfinite().all()
