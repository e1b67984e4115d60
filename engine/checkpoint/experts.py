"""Experts, read from a checkpoint one at a time, whatever their form."""

# Shapes: K hidden size, N features out, F features of an expert.

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from engine.checkpoint.tensor_names import LinearSpec, Read
from engine.ops.contract import ExpertWeights


def read_experts(
    read: Read, experts: Iterable[Sequence[LinearSpec]], dtype: torch.dtype, *, interleaved: bool
) -> Iterator[ExpertWeights]:
    """Every expert of a layer, in order, as `tensor_names.expert_linears` lists them;
    `interleaved` where rows of gate and up take turns."""
    for expert, linears in enumerate(experts):
        yield _expert(read, linears, dtype, expert, interleaved)  # keeps none while it waits


def _expert(
    read: Read, linears: Sequence[LinearSpec], dtype: torch.dtype, expert: int, interleaved: bool
) -> ExpertWeights:
    *gate_up, down = linears
    weights = [linear.load_weight(read, dtype, expert) for linear in gate_up]
    gate_up_NK = torch.cat(weights) if len(weights) > 1 else weights[0]
    down_KF = down.load_weight(read, dtype, expert)
    gate_up_bias_N, down_bias_K = gate_up[0].load_bias(read, expert), down.load_bias(read, expert)
    if interleaved:
        gate_up_NK = gate_then_up(gate_up_NK)
        gate_up_bias_N = None if gate_up_bias_N is None else gate_then_up(gate_up_bias_N)
    return ExpertWeights(
        gate_up_NK=gate_up_NK.contiguous(),
        gate_up_bias_N=gate_up_bias_N,
        down_KF=down_KF.contiguous(),
        down_bias_K=down_bias_K,
    )


def gate_then_up(rows: Tensor) -> Tensor:
    """The even rows, then the odd ones."""
    return torch.cat((rows[0::2], rows[1::2]))
