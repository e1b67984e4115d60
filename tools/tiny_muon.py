"""Muon for the matrices inside the blocks, AdamW for embeddings and norms.

Called by `train_tiny`. Method: K. Jordan et al., "Muon: an optimizer for hidden layers in neural
networks" (2024), with the update scaled to AdamW's root mean square (Liu et al., "Muon is scalable
for LLM training", 2025). In float32, or in bfloat16 on processors that multiply it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MATRIX_RATE, OTHER_RATE = 2e-3, 2e-3
MOMENTUM = 0.95
WEIGHT_DECAY = 0.02
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(
    gradient_NIO: torch.Tensor, num_steps: int = 5, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """About the nearest matrices with singular values of one; N matrices, inputs, outputs."""
    a, b, c = NEWTON_SCHULZ
    wide = gradient_NIO.shape[-2] <= gradient_NIO.shape[-1]
    x: torch.Tensor = gradient_NIO if wide else gradient_NIO.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(num_steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).float()


class Muon:
    """Both optimisers behind one `step`; matrices of one shape are orthogonalised together."""

    def __init__(self, model: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
        others = [p for n, p in model.named_parameters() if p.ndim < 2 or "layers" not in n]
        self._groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for matrix in matrices:
            self._groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self._momenta = {
            shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()
        }
        self._adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self._rate = 1.0

    def set_rate(self, factor: float) -> None:
        """Scale both learning rates from now on."""
        self._rate = factor
        for group in self._adam.param_groups:
            group["lr"] = OTHER_RATE * factor

    @torch.no_grad()
    def step(self) -> None:
        self._adam.step()
        for shape, group in self._groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum = self._momenta[shape].lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM), dtype=self._dtype)
            rate = MATRIX_RATE * self._rate
            scale = 0.2 * max(shape) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * WEIGHT_DECAY).sub_(change, alpha=rate * scale)

    def zero_grad(self) -> None:
        for group in self._groups.values():
            for parameter in group:
                parameter.grad = None
        self._adam.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        momenta = {str(shape): momentum for shape, momentum in self._momenta.items()}
        return {"momenta": momenta, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._momenta = {shape: state["momenta"][str(shape)] for shape in self._groups}
        self._adam.load_state_dict(state["adam"])
