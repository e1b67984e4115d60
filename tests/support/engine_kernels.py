"""Runs the engine's Triton kernels beside their torch twins: by Triton's interpreter, or on a GPU.

    TRITON_INTERPRET=1 python -m support.engine_kernels NAME ...

Started by `tests/kernels/test_engine_kernels.py`; a name is that of a function below; the first
that differs ends the process with its traceback. Toy sizes: a program takes the interpreter
milliseconds.
"""

# Shapes: T tokens, R rows, V vocabulary, E experts, J experts of a token, K features, F of the
# MLP, H query heads, G KV heads, D head dim, B blocks, S token slots of a block.

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import msgspec
import numpy as np
import torch
from support.forwards import chunk
from torch import Tensor

from engine import attention as twin_attention
from engine.inputs import ForwardInputs, forward_inputs
from engine.kernels.attention import attention
from engine.kernels.blocks import gather, gather_twin, scatter, scatter_twin
from engine.kernels.choose import choose
from engine.kernels.experts import align
from engine.kernels.launch import SPLIT_TOKENS, Launch
from engine.kernels.ops import TritonOps
from engine.kernels.sample import SamplingRows
from engine.kernels.store_kv import store_kv
from engine.kvpool import KvPool
from engine.layers import TorchOps
from engine.ops import Activation, ExpertWeights, HeadShape, Ops
from engine.sampler import sample as twin_sample
from protocol.layout import KvLayout
from protocol.messages import Sampling

F32, BF16 = torch.float32, torch.bfloat16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
OURS, TWIN = TritonOps(io_dtype=F32), TorchOps(io_dtype=F32)
BOTH: tuple[Ops, Ops] = (OURS, TWIN)
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def noise(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return made.to(DEVICE)


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


# -- norms, gates, blocks ---------------------------------------------------------------------


@check
def norms() -> None:
    for width in (5, 64, 200):
        weight = noise(width, seed=3)
        for scale in (1.0, 0.22):
            for delta in (None, noise(3, width, seed=1)):
                for own in (None, weight):
                    residuals = [noise(3, width), noise(3, width)]
                    results = [
                        ops.norm(x, delta, own, 1e-5, delta_scale=scale)
                        for ops, x in zip(BOTH, residuals, strict=True)
                    ]
                    close(results[0], results[1])
                    close(residuals[0], residuals[1])
                    assert results[0].data_ptr() != residuals[0].data_ptr()
        y = noise(4, width, seed=4)
        close(OURS.post_norm(y, weight, 1e-6), TWIN.post_norm(y, weight, 1e-6))
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


@check
def blocks() -> None:
    for shape, dtype in (((9, 2, 1100), F32), ((9, 3, 5), BF16), ((9, 6), torch.uint8)):
        pool = (noise(*shape) * 50).to(dtype)
        listed_N = torch.tensor([4, 0, -1, 8, 5])
        staged = [torch.zeros(5, *shape[1:], dtype=dtype) for _ in range(2)]
        gather(pool, listed_N, staged[0])
        gather_twin(pool, listed_N, staged[1])
        assert staged[0].equal(staged[1]) and not staged[0][2].any()
        pools = [torch.ones_like(pool) for _ in range(2)]
        scatter(staged[0], listed_N, pools[0])
        scatter_twin(staged[1], listed_N, pools[1])
        assert pools[0].equal(pools[1]) and pools[0][[4, 0, 8, 5]].equal(pool[[4, 0, 8, 5]])


# -- the paged pool ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sequences as (tokens already in the pool, tokens of this step)."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_tokens: int = 8
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    norms: str = "none"
    num_turned: int | None = 16
    sequences: Sequence[tuple[int, int]] = ((0, 5), (31, 1), (32, 1), (20, 19), (7, 9))

    @property
    def num_blocks(self) -> int:
        """Of each sequence."""
        return max(-(-(before + now) // self.block_tokens) for before, now in self.sequences)

    @property
    def heads(self) -> HeadShape:
        dim = self.head_dim
        sizes = {
            "none": None, "head": (dim, dim),
            "whole": (dim * self.num_heads, dim * self.num_kv_heads),
        }[self.norms]  # fmt: skip
        q_norm, k_norm = (None, None) if sizes is None else (noise(size) for size in sizes)
        return HeadShape(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=dim,
            scale=dim**-0.5,
            layer=1,
            window=self.window,
            softcap=self.softcap,
            q_norm=q_norm,
            k_norm=k_norm,
            sinks_H=noise(self.num_heads, seed=12) if self.sinks else None,
        )

    def inputs(self) -> ForwardInputs:
        count = len(self.sequences) * self.num_blocks
        dice = torch.Generator().manual_seed(3)
        order = torch.randperm(count, generator=dice, device="cpu")
        tables = order.view(len(self.sequences), -1).tolist()
        chunks = [
            chunk([0] * now, start=before, table=table)
            for (before, now), table in zip(self.sequences, tables, strict=True)
        ]
        made = forward_inputs(chunks, block_tokens=self.block_tokens)
        moved = {field.name: getattr(made, field.name).to(DEVICE) for field in fields(made)}
        return ForwardInputs(**moved)

    def pool(self) -> KvPool:
        layout = KvLayout(
            num_layers=2,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_tokens=self.block_tokens,
            dtype="float32",
        )
        pool = KvPool(layout, self.num_blocks * len(self.sequences))
        pool.tensor.copy_(noise(*pool.tensor.shape, seed=4))
        return pool

    def qkv(self) -> Tensor:
        width = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return noise(sum(now for _, now in self.sequences), width, seed=5)


ROPES = (
    Case(),
    Case(norms="head"),
    Case(norms="whole"),
    Case(num_turned=8, norms="head"),
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
def stores() -> None:
    case = Case(num_heads=3, num_kv_heads=3, head_dim=10)
    k_TGD, v_TGD = noise(7, 3, 10), noise(7, 6, 10)[:, 3:]
    slots_T = torch.tensor([5, -1, 17, 0, 30, -1, 8])
    pools = [case.pool().tensor[:, 1] for _ in range(2)]
    store_kv(pools[0], k_TGD, v_TGD, slots_T)
    real_T = slots_T >= 0
    twin_attention.store(pools[1], k_TGD[real_T], v_TGD[real_T], slots_T[real_T])
    assert pools[0].equal(pools[1])


SMALL = Launch(block_m=16, block_n=16)
ATTENTIONS = {
    "plain": Case(),
    "window": Case(window=9),
    "window wider than a tile": Case(window=25),
    "sinks": Case(sinks=True, window=9),
    "cap": Case(softcap=0.7),
    "one KV head of five": Case(num_heads=5, num_kv_heads=1),
    "ungrouped": Case(num_kv_heads=4),
    "40 heads of one": Case(num_heads=40, num_kv_heads=1, sequences=((0, 3), (20, 1))),
    "dim 10": Case(head_dim=10, num_turned=None),
    "dim 40": Case(head_dim=40, num_turned=None, sequences=((17, 3),)),
    "dim 96": Case(head_dim=96, num_turned=None, sequences=((17, 3),)),
    "block of one": Case(block_tokens=1),
    "block of three": Case(block_tokens=3),
    "blocks wider than a tile": Case(block_tokens=32),
    "one token each": Case(sequences=((0, 1), (15, 1), (16, 1), (40, 1))),
}


@check
def attentions() -> None:
    for name, case in ATTENTIONS.items():
        qkv, inputs, pool = case.qkv(), case.inputs(), case.pool()
        try:
            close(
                OURS.attend(qkv, case.heads, pool, inputs),
                TWIN.attend(qkv, case.heads, pool, inputs),
            )
        except AssertionError as error:
            raise AssertionError(name) from error


@check
def what_lies_beyond_the_context_is_never_read() -> None:
    """Nor what lies before the window, whose block somebody else may have by now."""
    for window in (None, 9):
        case = Case(window=window)
        inputs, pool, spoilt = case.inputs(), case.pool(), case.pool()
        spoilt.tensor.fill_(torch.nan)
        tables_SB = inputs.tables_GSB[0]
        for s, (before, now) in enumerate(case.sequences):
            first = 0 if window is None else max(0, before - window + 1)
            for position in range(first, before + now):
                block, place = int(tables_SB[s, position // 8]), position % 8
                spoilt.tensor[block, :, :, :, place] = pool.tensor[block, :, :, :, place]
            tables_SB[s, : first // 8] = 0
        close(
            OURS.attend(case.qkv(), case.heads, spoilt, inputs),
            TWIN.attend(case.qkv(), case.heads, spoilt, inputs),
        )


@check
def a_row_depends_neither_on_its_chunk_nor_on_the_batch() -> None:
    """Bit for bit, but for single rows under the interpreter: numpy's products depend a little on
    the place of a row."""
    case = Case(window=9, sinks=True)
    qkv, inputs, pool = case.qkv(), case.inputs(), case.pool().tensor[:, 1]
    q_THD = qkv.view(len(qkv), -1, 16)[:, :4]
    launch = Launch(block_m=16, block_n=16)
    together = attention(q_THD, pool, inputs, case.heads, launch=launch, splits=1)
    starts, ends = inputs.starts_S1.tolist(), inputs.ends_S.tolist()
    for s in range(len(ends)):
        own = replace(
            inputs,
            starts_S1=torch.tensor([0, starts[s + 1] - starts[s]], dtype=torch.int32),
            ends_S=inputs.ends_S[s : s + 1],
            tables_GSB=inputs.tables_GSB[:, s : s + 1].contiguous(),
        )
        mine = slice(starts[s], starts[s + 1])
        got = attention(q_THD[mine].contiguous(), pool, own, case.heads, launch=launch, splits=1)
        assert got.equal(together[mine])
    for s, t in ((0, 3), (2, 6), (3, 9), (3, 25), (4, 34)):
        alone = replace(
            inputs,
            starts_S1=torch.tensor([0, 1], dtype=torch.int32),
            ends_S=torch.tensor([ends[s] - starts[s + 1] + t + 1], dtype=torch.int32),
            tables_GSB=inputs.tables_GSB[:, s : s + 1].contiguous(),
        )
        got = attention(
            q_THD[t : t + 1].contiguous(), pool, alone, case.heads, launch=launch, splits=1
        )
        close(got[0], together[t], 1e-6 if INTERPRETED else 0.0)


@check
def splits() -> None:
    """Contexts of none, part, one and several splits, beside attention without them."""
    size = SPLIT_TOKENS
    for window, sinks in ((None, False), (None, True), (size + 300, False), (7, True)):
        case = Case(
            num_heads=2, num_kv_heads=1, block_tokens=64, window=window, sinks=sinks,
            sequences=((5, 1), (size - 1, 1), (size, 1), (2 * size + 37, 1)),
        )  # fmt: skip
        qkv, inputs, pool = case.qkv(), case.inputs(), case.pool()
        layer_pool = pool.tensor[:, 1]
        q_THD = qkv.view(len(qkv), -1, 16)[:, :2]
        wide = Launch(block_m=16, block_n=128)
        got = attention(q_THD, layer_pool, inputs, case.heads, launch=wide, splits=3)
        close(got, TWIN.attend(qkv, case.heads, pool, inputs))
        more = attention(q_THD, layer_pool, inputs, case.heads, launch=wide, splits=4)
        assert more.equal(got), "empty splits change nothing"
        one = attention(q_THD, layer_pool, inputs, case.heads, launch=wide, splits=1)
        assert sinks or one[:3].equal(got[:3]), "nor does being the only one"
        chunks = replace(case, sequences=((size - 3, 5), (40, 2)))
        qkv, inputs, pool = chunks.qkv(), chunks.inputs(), chunks.pool()
        chosen = OURS.attend(qkv, chunks.heads, pool, inputs)
        close(chosen, TWIN.attend(qkv, chunks.heads, pool, inputs))


# -- rows and tiles with nothing in them ------------------------------------------------------


@check
def rows_that_pad_a_batch_are_harmless() -> None:
    """Slots -1, tables 0, sequences without tokens: before, between and after the real ones."""
    case = Case(sequences=((9, 2), (20, 1)), sinks=True)
    qkv, inputs, pool, plain = case.qkv(), case.inputs(), case.pool(), case.pool()
    tables_GSB = torch.zeros(1, 5, inputs.tables_GSB.shape[2], dtype=torch.int32)
    tables_GSB[:, [1, 3]] = inputs.tables_GSB
    padded = replace(
        inputs,
        slots_GT=torch.cat((inputs.slots_GT, torch.full((1, 4), -1)), dim=1),
        starts_S1=torch.tensor([0, 0, 2, 2, 3, 3], dtype=torch.int32),
        ends_S=torch.tensor([0, 11, 0, 21, 0], dtype=torch.int32),
        tables_GSB=tables_GSB,
    )
    many = torch.cat((qkv, torch.full((4, qkv.shape[1]), torch.nan)))
    angles = noise(len(many), 8, seed=6)
    rotations = torch.stack((angles.cos(), angles.sin()), dim=1)
    OURS.rotate_and_store(qkv, rotations[:3].contiguous(), case.heads, plain, inputs)
    OURS.rotate_and_store(many, rotations, case.heads, pool, padded)
    assert pool.tensor.equal(plain.tensor)
    expected = OURS.attend(qkv, case.heads, plain, inputs)
    assert OURS.attend(many, case.heads, pool, padded)[:3].equal(expected)
    q_THD = many.view(len(many), -1, 16)[:, :4]
    launch = Launch(block_m=16, block_n=64)
    got = attention(q_THD, pool.tensor[:, 1], padded, case.heads, launch=launch, splits=2)
    close(got[:3], expected)


@check
def a_row_that_sees_nothing_is_zero() -> None:
    """A context of no token, as rows have that fill up a captured step: with sinks they take all
    of the weight, without there is none."""
    for sinks in (True, False):
        for sequences in (((0, 2),), ((0, 1), (0, 1))):
            case = Case(sequences=sequences, sinks=sinks)
            q_THD = case.qkv().view(2, -1, 16)[:, :4]
            empty = replace(case.inputs(), ends_S=torch.zeros(len(sequences), dtype=torch.int32))
            pool = case.pool()
            pool.tensor.fill_(torch.nan)
            results = [TWIN.attend(case.qkv(), case.heads, pool, empty)] + [
                attention(q_THD, pool.tensor[:, 1], empty, case.heads, launch=SMALL, splits=count)
                for count in (1, 2)
            ]
            assert all(got.equal(torch.zeros_like(got)) for got in results)


@check
def damaged_keys_stay_in_their_sequence() -> None:
    case = Case(sequences=((20, 1), (20, 3), (9, 1)))
    inputs, pool = case.inputs(), case.pool()
    clean = OURS.attend(case.qkv(), case.heads, pool, inputs)
    pool.tensor[int(inputs.tables_GSB[0, 1, 1]), 1, 0, :, 2] = torch.nan
    got = OURS.attend(case.qkv(), case.heads, pool, inputs)
    assert got[[0, 4]].equal(clean[[0, 4]])
    assert got[1:4].isnan().all()
    assert TWIN.attend(case.qkv(), case.heads, pool, inputs)[1:4].isnan().all()


# -- sampling ---------------------------------------------------------------------------------


def rows_of(settings: Sequence[Sampling], positions: Sequence[int]) -> SamplingRows:
    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(one, name) for one in settings], dtype=dtype)

    seeds = np.array([one.seed % 2**64 for one in settings], dtype=np.uint64)
    return SamplingRows(
        temperature_R=column("temperature", F32),
        top_k_R=column("top_k", torch.int32),
        top_p_R=column("top_p", F32),
        min_p_R=column("min_p", F32),
        seed_R=torch.from_numpy(seeds.view(np.int64)).to(DEVICE),
        position_R=torch.tensor(positions),
    )


def twin_tokens(logits_RV: Tensor, settings: Sequence[Sampling], positions: list[int]) -> list[int]:
    chunks = [
        chunk([1], table=[0], start=position - 1, sampling=one)
        for one, position in zip(settings, positions, strict=True)
    ]
    tokens = twin_sample(logits_RV.cpu(), chunks, eos_token_ids=())
    return [-1 if token is None else token.token_id for token in tokens]


FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 7},
    {"top_p": 0.8},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.3},
    {"top_k": 3000, "top_p": 0.999},
)


@check
def tokens() -> None:
    """Chosen alike to the last: seeds of any sign, positions beyond 2^31, tiles cut anywhere."""
    for size, scale in ((5, 1.0), (4099, 3.0)):
        logits_RV = noise(len(FILTERS), size) * scale
        settings = [
            Sampling(seed=seed, max_tokens=1, **filters)  # type: ignore[arg-type]
            for seed, filters in zip((-(2**63), 2**64 - 1, 7, -1) * 3, FILTERS, strict=False)
        ]
        for start in (1, 2**31 - 1, 2**40):
            positions = [start + 3 * r for r in range(len(FILTERS))]
            got = choose(logits_RV, rows_of(settings, positions)).tolist()
            assert got == twin_tokens(logits_RV, settings, positions)


@check
def ties() -> None:
    """Equal scores at every edge go to lower ids, as the twin's do."""
    dice = torch.Generator().manual_seed(5)
    logits_RV = torch.randint(0, 4, (40, 300), generator=dice, device="cpu").to(DEVICE, F32)
    filters: tuple[dict[str, float], ...] = (
        {"top_k": 3}, {"top_k": 90}, {"top_p": 0.5}, {"top_k": 90, "top_p": 0.75}, {"min_p": 0.3},
    )  # fmt: skip
    settings = [Sampling(seed=r, max_tokens=1, **filters[r % 5]) for r in range(40)]  # type: ignore[arg-type]
    positions = list(range(1, 41))
    got = choose(logits_RV, rows_of(settings, positions)).tolist()
    assert got == twin_tokens(logits_RV, settings, positions)
    greedy = [Sampling(seed=0, max_tokens=1, temperature=0.0)]
    assert choose(torch.zeros(1, 5000), rows_of(greedy, [1])).tolist() == [0]


@check
def a_row_without_a_finite_logit_has_no_token() -> None:
    for temperature in (0.0, 1.0):
        settings = [Sampling(seed=1, max_tokens=1, temperature=temperature, top_p=0.9)] * 5
        logits_RV = noise(5, 50)
        logits_RV[1], logits_RV[2] = torch.nan, -torch.inf
        logits_RV[3, 4:] = torch.nan
        logits_RV[4, 9] = torch.inf
        got = choose(logits_RV, rows_of(settings, [4] * 5)).tolist()
        assert got == twin_tokens(logits_RV, settings, [4] * 5)
        assert got[1:3] == [-1, -1] and 0 <= got[3] < 4 and got[4] == 9


@check
def a_token_depends_on_its_row_alone() -> None:
    logits_RV = noise(6, 500) * 2
    settings = [Sampling(seed=100 + r, max_tokens=1, top_p=0.95) for r in range(6)]
    together = choose(logits_RV, rows_of(settings, [9] * 6))
    for r in range(6):
        alone = choose(logits_RV[r : r + 1], rows_of(settings[r : r + 1], [9]))
        assert alone == together[r]


# -- experts ----------------------------------------------------------------------------------


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


# -- where there are tensor cores -------------------------------------------------------------


@check
def bfloat16() -> None:
    """Not by the interpreter, whose products of bfloat16 are wrong."""
    if INTERPRETED:
        return
    for name, case in ATTENTIONS.items():
        inputs, pool = case.inputs(), case.pool()
        narrow = KvPool(msgspec.structs.replace(pool.layout, dtype="bfloat16"), pool.num_blocks)
        narrow.tensor.copy_(pool.tensor)
        pool.tensor.copy_(narrow.tensor)
        qkv = case.qkv().to(BF16)
        got = TritonOps(io_dtype=BF16).attend(qkv, case.heads, narrow, inputs)
        expected = TWIN.attend(qkv.float(), case.heads, pool, inputs)
        assert torch.allclose(got.float(), expected, atol=2e-2, rtol=2e-2), name
    weights = [
        ExpertWeights(
            gate_up_NK=noise(128, 64, seed=e).to(BF16) / 8,
            gate_up_bias_N=noise(128, seed=e + 10).to(BF16),
            down_KF=noise(64, 64, seed=e + 20).to(BF16) / 8,
            down_bias_K=None,
        )
        for e in range(4)
    ]
    x_TK, ids_TJ = noise(70, 64).to(BF16), noise(70, 4, seed=8).argsort(1)[:, :2].contiguous()
    ops: tuple[Ops, ...] = (TritonOps(io_dtype=BF16), TorchOps(io_dtype=BF16))
    got, expected = (
        one.experts(weights, num_experts=4, activation="silu")(x_TK, ids_TJ, noise(70, 2, seed=9))
        for one in ops
    )
    assert torch.allclose(got.float(), expected.float(), atol=5e-2, rtol=5e-2)


def main() -> None:
    torch.set_num_threads(1)
    torch.set_default_device(DEVICE)
    for name in sys.argv[1:] or CHECKS:
        CHECKS[name]()


if __name__ == "__main__":
    main()
