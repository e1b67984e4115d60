"""Rotary position embedding: which kinds there are, and their frequencies.

Made by `engine.config`, used by `engine.model`. Follows transformers' modeling_rope_utils so that
logits agree; `dynamic` and `longrope` depend on the sequence length and are refused by name.
"""

# Shapes: T tokens, D head dim.

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One rope as the checkpoint names it; fields a kind does not use keep their defaults."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_tokens: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Multiplies cos and sin: q·k grows by its square (YaRN, arXiv 2309.00071)."""


def frequencies(rope: Rope, *, head_dim: int) -> Tensor:
    """Angular frequency of each pair of dims, float32 [D / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    freq = 1.0 / rope.theta**exponents
    match rope.kind:
        case "default":
            return freq
        case "linear":
            return freq / rope.factor
        case "llama3":
            return _llama3(freq, rope)
        case "yarn":
            return _yarn(freq, rope, head_dim=head_dim)


def rotations(freq_D: Tensor, positions_T: Tensor, *, attention_factor: float) -> Tensor:
    """cos then sin of every position, float32 [T, 2, D / 2]."""
    angles = positions_T.to(torch.float32)[:, None] * freq_D
    return torch.stack((angles.cos(), angles.sin()), dim=1).mul_(attention_factor)


def yarn_attention_factor(
    factor: float, *, mscale: float | None, mscale_all_dim: float | None
) -> float:
    """The factor a YaRN checkpoint means when it does not name one."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def _llama3(freq: Tensor, rope: Rope) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
    wavelength = 2 * math.pi / freq
    low_wavelength = rope.original_max_tokens / rope.low_freq_factor
    high_wavelength = rope.original_max_tokens / rope.high_freq_factor
    smooth = (rope.original_max_tokens / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * freq / rope.factor + smooth * freq
    slowed = torch.where(wavelength > low_wavelength, freq / rope.factor, freq)
    between = (wavelength <= low_wavelength) & (wavelength >= high_wavelength)
    return torch.where(between, blended, slowed)


def _yarn(freq: Tensor, rope: Rope, *, head_dim: int) -> Tensor:
    def dim_of(num_rotations: float) -> float:
        turns = rope.original_max_tokens / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as transformers: no division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return freq / rope.factor * ramp + freq * (1 - ramp)
