"""Experts: read from a checkpoint one at a time, whatever their form, and chosen by a router.

A new form of storage is a new function here.
"""

# Shapes: T tokens, K hidden size, N features out, F features of an expert, E experts, J experts
# of a token.

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from engine.checkpoint.quant.mxfp4 import dequantise
from engine.checkpoint.tensor_names import mixture_block
from engine.models.family import ExpertForm
from engine.models.layer_spec import MixtureSpec
from engine.ops.contract import ExpertWeights


class Read(Protocol):
    def __call__(self, name: str, dtype: torch.dtype, row: int | None = None) -> Tensor:
        """A tensor of the checkpoint on its device, or one row of its first dim."""
        ...


def read_experts(
    read: Read, mixture: MixtureSpec, prefix: str, form: ExpertForm, dtype: torch.dtype
) -> Iterator[ExpertWeights]:
    """Every expert of the layer whose tensors start with `prefix`, in order."""
    experts = f"{prefix}{mixture_block(mixture, form)}experts."
    for expert in range(mixture.num_experts):
        yield _expert(read, mixture, experts, form, dtype, expert)  # keeps none while it waits


def _expert(
    read: Read,
    mixture: MixtureSpec,
    experts: str,
    form: ExpertForm,
    dtype: torch.dtype,
    expert: int,
) -> ExpertWeights:
    rule = mixture.rule
    biases: tuple[Tensor | None, Tensor | None] = (None, None)
    if form == "each":
        names = [f"{experts}{expert}.{name}.weight" for name in (rule.gate, rule.up, rule.down)]
        gate_FK, up_FK, down_KF = (read(name, dtype) for name in names)
        gate_up_NK = torch.cat((gate_FK, up_FK))
    else:
        gate_up_NK = _linear(read, f"{experts}gate_up_proj", form, rule.transposed, dtype, expert)
        down_KF = _linear(read, f"{experts}down_proj", form, rule.transposed, dtype, expert)
        biases = _biases(read, experts, expert) if rule.biased else biases
    gate_up_bias_N, down_bias_K = biases
    if rule.interleaved:
        gate_up_NK = gate_then_up(gate_up_NK)
        gate_up_bias_N = None if gate_up_bias_N is None else gate_then_up(gate_up_bias_N)
    return ExpertWeights(
        gate_up_NK=gate_up_NK.to(dtype).contiguous(),
        gate_up_bias_N=gate_up_bias_N,
        down_KF=down_KF.to(dtype).contiguous(),
        down_bias_K=down_bias_K,
    )


def gate_then_up(rows: Tensor) -> Tensor:
    """The even rows, then the odd ones."""
    return torch.cat((rows[0::2], rows[1::2]))


def _linear(
    read: Read, name: str, form: ExpertForm, transposed: bool, dtype: torch.dtype, expert: int
) -> Tensor:
    if form == "mxfp4":
        blocks = read(f"{name}_blocks", torch.uint8, expert)
        return dequantise(blocks, read(f"{name}_scales", torch.uint8, expert))
    weight = read(name, dtype, expert)
    return weight.T if transposed else weight


def _biases(read: Read, experts: str, expert: int) -> tuple[Tensor, Tensor]:
    """Of one expert."""
    gate_up_bias_N = read(f"{experts}gate_up_proj_bias", torch.float32, expert)
    return gate_up_bias_N, read(f"{experts}down_proj_bias", torch.float32, expert)
