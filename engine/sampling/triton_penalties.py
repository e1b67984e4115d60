"""Penalties by counts on a GPU, in one pass. Twin: `engine.sampling.penalties`."""

# Shapes: R rows of logits, A of them penalised, P rows of counts, V vocabulary.

import triton
import triton.language as tl
from torch import Tensor

from engine.ops.triton.launch import Launch, as_stride
from engine.sampling.penalties import IN_PROMPT, PenaltyRules
from engine.sampling.sampler import MOST

LAUNCH = Launch(block_n=2_048, num_warps=4)
_IN_PROMPT = tl.constexpr(IN_PROMPT)
_MOST = tl.constexpr(MOST)
_POINTERS = ["rows", "places", "repetitions", "frequencies", "presences"]
_UNFUSED = {"enable_fp_fusion": False}
"""Product and sum are rounded apart, as on a CPU."""


@triton.jit(do_not_specialize_on_alignment=_POINTERS)  # type: ignore[untyped-decorator]
def penalise_kernel(  # type: ignore[no-untyped-def]
    logits, counts, rows, places, repetitions, frequencies, presences, row_stride, size,
    TILE: tl.constexpr,
):  # fmt: skip
    """Program (a, tile) changes one tile of row `rows[a]`, or nothing where no token is held."""
    a, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = tile * TILE + tl.arange(0, TILE)
    count = tl.load(counts + tl.load(places + a) * size + ids, mask=ids < size, other=0)
    if tl.max(count, axis=0) > 0:
        held = count > 0
        row = logits + tl.load(rows + a) * row_stride
        before = tl.load(row + ids, mask=held, other=0.0)
        score = tl.where(before > _MOST, _MOST, before)
        factor = tl.load(repetitions + a)
        repeated = tl.where(score > 0, tl.div_rn(score, factor), score * factor)
        score = tl.where(score > float("-inf"), bounded(repeated), score)
        outputs = count & (_IN_PROMPT - 1)
        malus = tl.load(frequencies + a) * outputs.to(tl.float64) + tl.load(presences + a)
        lowered = bounded(score - bounded(malus).to(tl.float32))
        score = tl.where((outputs > 0) & (score > float("-inf")), lowered, score)
        tl.store(row + ids, score, mask=held)


@triton.jit
def bounded(value):  # type: ignore[no-untyped-def]
    return tl.where(value > _MOST, _MOST, tl.where(value < -_MOST, -_MOST, value))


def penalise(logits_RV: Tensor, counts_PV: Tensor, rules: PenaltyRules, /) -> None:
    """As `engine.sampling.penalties.ScorePenaliser`. Nothing waits for the device."""
    size = logits_RV.shape[1]
    penalise_kernel[(len(rules.rows_A), triton.cdiv(size, LAUNCH.block_n))](
        logits_RV, counts_PV, rules.rows_A, rules.places_A, rules.repetition_A, rules.frequency_A,
        rules.presence_A, as_stride(logits_RV, 0), size, TILE=LAUNCH.block_n,
        **LAUNCH.options | _UNFUSED,
    )  # fmt: skip
