"""Rotary position embedding: which kinds there are, and their frequencies.

Follows transformers' modeling_rope_utils so that logits agree, but for one choice: frequencies of
LongRoPE follow the length of the context (docs/decisions/0011), not that of the sequence.
"""

# Shapes: T tokens, D head dim, R dims that turn.

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One rope as the checkpoint names it; fields a kind does not use keep their defaults."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    share: float = 1.0
    """Of a head's dims, the first that turn (`partial_rotary_factor`)."""
    factor: float = 1.0
    original_max_tokens: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    extrapolation_factor: float = 1.0
    """YaRN: how much of the unscaled frequency the fast dims keep."""
    long: bool = False
    """LongRoPE: the context is beyond the original, and so are the frequencies."""
    dim_factors: tuple[float, ...] = ()
    """LongRoPE (arXiv 2402.13753): each pair's frequency is divided by its factor."""
    attention_factor: float = 1.0
    """Multiplies cos and sin: q·k grows by its square (YaRN, arXiv 2309.00071)."""

    def __str__(self) -> str:
        if self.kind == "default":
            return f"default, theta {self.theta:g}"
        reach = f"{self.kind}, factor {self.factor:g} of {self.original_max_tokens} tokens"
        return f"{reach}, long" if self.long else reach


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGrowth:
    """Queries grow with the logarithm of their position, by steps (Llama 4, Ministral 3)."""

    beta: float
    step_tokens: int

    def at(self, positions_T: Tensor) -> Tensor:
        """float32 [T, 1]; 1 within the first step."""
        steps_T = torch.floor(positions_T / self.step_tokens)
        return (1 + self.beta * torch.log1p(steps_T))[:, None]


def rotary_dim(rope: Rope, *, head_dim: int) -> int:
    """How many of a head's first dims turn."""
    return int(head_dim * rope.share)


def frequencies(rope: Rope, *, head_dim: int) -> Tensor:
    """Angular frequency of each pair of dims, float32 [R / 2]; of a dynamic rope those within the
    original context (`stretched`)."""
    dim = rotary_dim(rope, head_dim=head_dim)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    freq = 1.0 / rope.theta**exponents
    match rope.kind:
        case "default" | "dynamic":
            return freq
        case "linear":
            return freq / rope.factor
        case "llama3":
            return _llama3(freq, rope)
        case "yarn":
            return _yarn(freq, rope, dim=dim)
        case "longrope":
            return freq / torch.tensor(rope.dim_factors, dtype=torch.float32)


def stretched(rope: Rope, freq_R: Tensor, reaches_T: Tensor) -> Tensor:
    """Of a dynamic rope, each token's own frequencies, float32 [T, R / 2]: beyond the original
    context the base grows with the length that a token is turned for (dynamic NTK scaling)."""
    dim = 2 * freq_R.shape[0]
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=freq_R.device) / dim
    growth_T = rope.factor * reaches_T / rope.original_max_tokens - (rope.factor - 1)
    theta_T = rope.theta * growth_T ** (dim / (dim - 2))
    beyond_T1 = (reaches_T > rope.original_max_tokens)[:, None]
    return torch.where(beyond_T1, 1.0 / theta_T[:, None] ** exponents, freq_R)


def rotations(freq_R: Tensor, positions_T: Tensor, *, attention_factor: float) -> Tensor:
    """cos then sin of every position, float32 [T, 2, R / 2]. The frequencies may be each token's
    own."""
    angles = positions_T.to(torch.float32)[:, None] * freq_R
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


def longrope_attention_factor(factor: float, *, original_max_tokens: int) -> float:
    """The factor a LongRoPE checkpoint means when it does not name one."""
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_tokens))


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


def _yarn(freq: Tensor, rope: Rope, *, dim: int) -> Tensor:
    def dim_of(num_rotations: float) -> float:
        turns = rope.original_max_tokens / (num_rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast), dim_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as transformers: no division by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = (1 - ramp) * rope.extrapolation_factor
    return freq / rope.factor * (1 - kept) + freq * kept
