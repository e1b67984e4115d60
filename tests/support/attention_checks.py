"""Paged attention beside its twin, and rows and tiles with nothing in them."""

# Shapes: H query heads, G KV heads, D head dim, B blocks.

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch
from support.kernel_cases import BF16, INTERPRETED, OURS, TWIN, Case, check, close, noise
from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops import work as cutting
from engine.ops.contract import ExpertWeights, Ops
from engine.ops.inputs import ForwardInputs
from engine.ops.torch_ops import TorchOps
from engine.ops.triton import attention as attending
from engine.ops.triton.attention import attention
from engine.ops.triton.launch import Launch
from engine.ops.triton.ops import TritonOps
from protocol.layout import KvDtype

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
    together = attention(q_THD, pool, inputs, case.heads, launch=SMALL)
    starts, ends = inputs.starts_S1.tolist(), inputs.ends_S.tolist()
    for s in range(len(ends)):
        own = alone(case, inputs, s, starts[s + 1] - starts[s], ends[s])
        mine = slice(starts[s], starts[s + 1])
        got = attention(q_THD[mine].contiguous(), pool, own, case.heads, launch=SMALL)
        assert got.equal(together[mine])
    for s, t in ((0, 3), (2, 6), (3, 9), (3, 25), (4, 34)):
        own = alone(case, inputs, s, 1, ends[s] - starts[s + 1] + t + 1)
        got = attention(q_THD[t : t + 1].contiguous(), pool, own, case.heads, launch=SMALL)
        close(got[0], together[t], 1e-6 if INTERPRETED else 0.0)


def alone(case: Case, inputs: ForwardInputs, s: int, num_tokens: int, end: int) -> ForwardInputs:
    """Sequence `s` with so many tokens up to `end`, and nothing else."""
    return case.cut(
        replace(
            inputs,
            starts_S1=torch.tensor([0, num_tokens], dtype=torch.int32),
            ends_S=torch.tensor([end], dtype=torch.int32),
            tables_GSB=inputs.tables_GSB[:, s : s + 1].contiguous(),
        )
    )


SIZE = 32
"""Of a split, so that the interpreter soon has several."""
MIXED = ((5, 1), (SIZE - 1, 1), (SIZE, 1), (3 * SIZE + 7, 1), (2 * SIZE + 1, 3), (9, 20), (130, 6))
"""Decodes of one to four splits, and chunks of one and of several."""


def split_cases() -> Iterator[Case]:
    for window, sinks in ((None, False), (None, True), (SIZE + 20, True), (7, False)):
        yield Case(
            num_heads=2, num_kv_heads=1, block_tokens=16, window=window, sinks=sinks,
            sequences=MIXED,
        )  # fmt: skip


@check
def splits() -> None:
    """Contexts of part, one and many splits, beside attention without them."""
    for case in split_cases():
        with patch.object(cutting, "SPLIT_TOKENS", SIZE):
            qkv, inputs, pool = case.qkv(), case.inputs(), case.pool()
        assert inputs.work is not None and inputs.work.chunk_splits > 1
        got = OURS.attend(qkv, case.heads, pool, inputs)
        close(got, TWIN.attend(qkv, case.heads, pool, inputs))
        with patch.object(attending, "MOST_PROGRAMS", 1):
            few = OURS.attend(qkv, case.heads, pool, inputs)
        assert few.equal(got), "how many programs share them changes nothing"
        with patch.multiple(cutting, SPLIT_TOKENS=SIZE, MOST_SLOTS=3):
            again = case.inputs()
        assert again.work is not None and len(again.work.passes_G[0]) > 2
        passes = OURS.attend(qkv, case.heads, pool, again)
        assert passes.equal(got), "nor does in how many passes they are"


@check
def a_row_in_splits_depends_on_no_other() -> None:
    for case in split_cases():
        with patch.object(cutting, "SPLIT_TOKENS", SIZE):
            qkv, inputs, pool = case.qkv(), case.inputs(), case.pool()
            starts, ends = inputs.starts_S1.tolist(), inputs.ends_S.tolist()
            owns = [
                alone(case, inputs, s, starts[s + 1] - starts[s], end) for s, end in enumerate(ends)
            ]
        together = OURS.attend(qkv, case.heads, pool, inputs)
        for s, own in enumerate(owns):
            mine = slice(starts[s], starts[s + 1])
            got = OURS.attend(qkv[mine].contiguous(), case.heads, pool, own)
            assert got.equal(together[mine]), (case.window, s)


@check
def uniform_rows_are_alike_in_decodes_and_chunks() -> None:
    """Whatever chunk they are computed in; to the last bit with products that do not depend on a
    row's place, as the interpreter's do."""
    for case in split_cases():
        with patch.object(cutting, "SPLIT_TOKENS", SIZE):
            inputs, pool, qkv = case.inputs(), case.pool(), case.qkv()
            starts, ends = inputs.starts_S1.tolist(), inputs.ends_S.tolist()
            chunks = [(5, 5, 1), (6, 2, 4), (6, 2, 1), (4, 0, 1), (5, 10, 10)]
            owns = [
                (
                    starts[s] + first,
                    n,
                    alone(case, inputs, s, n, ends[s] - starts[s + 1] + starts[s] + first + n),
                )
                for s, first, n in chunks
            ]
        q_THD, layer_pool = qkv.view(len(qkv), -1, 16)[:, :2], pool.tensor[:, 1]
        with products_row_by_row():
            whole = attention(q_THD, layer_pool, inputs, case.heads, uniform=True)
            for first, n, own in owns:
                mine = slice(first, first + n)
                got = attention(q_THD[mine], layer_pool, own, case.heads, uniform=True)
                assert got.equal(whole[mine]), (case.window, first, n)
        close(whole, TWIN.attend(qkv, case.heads, pool, inputs))


@contextmanager
def products_row_by_row() -> Iterator[None]:
    """Under the interpreter: sums over k in one order for every row."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: object, a: Any, b: Any, c: Any, *more: object) -> TensorHandle:
        products = a.data.astype(np.float32)[:, :, None] * b.data.astype(np.float32)[None]
        return TensorHandle(c.data + np.add.accumulate(products, axis=1)[:, -1], c.dtype)

    with patch.object(InterpreterBuilder, "create_dot", dot):
        yield


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
    padded = case.cut(padded)
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
    got = attention(q_THD, pool.tensor[:, 1], padded, case.heads, launch=launch)
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
            empty = case.cut(empty)
            pool = case.pool()
            pool.tensor.fill_(torch.nan)
            results = [TWIN.attend(case.qkv(), case.heads, pool, empty)] + [
                attention(q_THD, pool.tensor[:, 1], empty, case.heads, uniform=uniform)
                for uniform in (False, True)
            ]
            assert all(got.equal(torch.zeros_like(got)) for got in results)


@check
def a_tile_that_is_wholly_masked_changes_nothing() -> None:
    """Tiles of keys that others of a row's tile see: before its window, and after its place."""
    case = Case(window=4, sequences=((28, 8),))
    inputs, pool, other = case.inputs(), case.pool(), case.pool()
    q_THD = case.qkv().view(8, -1, 16)[:, :4]

    def attended(pool: KvPool) -> Tensor:
        return attention(q_THD, pool.tensor[:, 1], inputs, case.heads, launch=SMALL)

    got = attended(pool)
    close(got, TWIN.attend(case.qkv(), case.heads, pool, inputs))
    first, second = inputs.tables_GSB[0, 0, 2:4].tolist(), inputs.tables_GSB[0, 0, 4:5].tolist()
    other.tensor[first] = 1e4  # keys 16 .. 31, of which the token at 35 sees none
    assert attended(other)[7].equal(got[7])
    other = case.pool()
    other.tensor[second] = 1e4  # keys 32 .. 35, of which the tokens before them see none
    assert attended(other)[:4].equal(got[:4])


@check
def what_no_split_wrote_is_never_read() -> None:
    """Past the context or before the window."""
    for case in split_cases():
        with patch.object(cutting, "SPLIT_TOKENS", SIZE):
            inputs = case.inputs()
        qkv, pool = case.qkv(), case.pool()
        with patch.object(torch, "empty", _nan):
            got = OURS.attend(qkv, case.heads, pool, inputs)
        assert not got.isnan().any()


def _nan(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


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


@check
def bfloat16() -> None:
    """Not by the interpreter, whose products of bfloat16 are wrong."""
    if not INTERPRETED:
        _check_narrow("bfloat16", BF16)


@check
def float16() -> None:
    _check_narrow("float16", torch.float16)


def _check_narrow(dtype: KvDtype, narrow_dtype: torch.dtype) -> None:
    for name, case in ATTENTIONS.items():
        inputs, pool = case.inputs(), case.pool()
        narrow = KvPool(msgspec.structs.replace(pool.layout, dtype=dtype), pool.num_blocks)
        narrow.tensor.copy_(pool.tensor)
        pool.tensor.copy_(narrow.tensor)
        qkv = case.qkv().to(narrow_dtype)
        got = TritonOps(io_dtype=narrow_dtype).attend(qkv, case.heads, narrow, inputs)
        expected = TWIN.attend(qkv.float(), case.heads, pool, inputs)
        assert torch.allclose(got.float(), expected, atol=2e-2, rtol=2e-2), name
    weights = [
        ExpertWeights(
            gate_up_NK=noise(128, 64, seed=e).to(narrow_dtype) / 8,
            gate_up_bias_N=noise(128, seed=e + 10).to(narrow_dtype),
            down_KF=noise(64, 64, seed=e + 20).to(narrow_dtype) / 8,
            down_bias_K=None,
        )
        for e in range(4)
    ]
    x_TK, ids_TJ = (
        noise(70, 64).to(narrow_dtype),
        noise(70, 4, seed=8).argsort(1)[:, :2].contiguous(),
    )
    ops: tuple[Ops, ...] = (TritonOps(io_dtype=narrow_dtype), TorchOps(io_dtype=narrow_dtype))
    got, expected = (
        one.experts(weights, num_experts=4, activation="silu")(x_TK, ids_TJ, noise(70, 2, seed=9))
        for one in ops
    )
    assert torch.allclose(got.float(), expected.float(), atol=5e-2, rtol=5e-2)
