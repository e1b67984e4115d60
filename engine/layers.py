"""The steps between the linears, in torch: the oracle of the C kernels and their stand-in.

Called through `engine.ops`. Results depend a little on the batch, as torch's own kernels do.
"""

# Shapes: T tokens, K features, N features out, H query heads, G KV heads, D head dim.

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import attention
from engine.inputs import ForwardInputs
from engine.kvpool import KvPool
from engine.ops import HeadShape


@dataclass(frozen=True, slots=True)
class TorchLinear:
    weight_NK: Tensor
    bias_N: Tensor | None

    def __call__(self, x_TK: Tensor) -> Tensor:
        return F.linear(x_TK, self.weight_NK, self.bias_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOps:
    """See `engine.ops.Ops`."""

    io_dtype: torch.dtype
    name: str = "torch"

    def linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> TorchLinear:
        return TorchLinear(
            weight_NK.to(self.io_dtype), None if bias_N is None else bias_N.to(self.io_dtype)
        )

    def norm(self, x_TK: Tensor, delta_TK: Tensor | None, weight_K: Tensor, eps: float) -> Tensor:
        if delta_TK is not None:
            x_TK += delta_TK
        return rms_norm(x_TK, weight_K, eps).to(self.io_dtype)

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotations_T2D: Tensor,
        heads: HeadShape,
        pool: KvPool,
        layer: int,
        inputs: ForwardInputs,
    ) -> None:
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        q_THD, k_TGD, v_TGD = torch.split(qkv.view(len(qkv), -1, heads.head_dim), sizes, dim=1)
        q_THD.copy_(_turned(q_THD, heads.q_norm_D, rotations_T2D, heads.norm_eps))
        k_TGD = _turned(k_TGD, heads.k_norm_D, rotations_T2D, heads.norm_eps)
        attention.store(pool.tensor[:, layer], k_TGD, v_TGD, inputs.slots_T)

    def attend(
        self, qkv: Tensor, heads: HeadShape, pool: KvPool, layer: int, inputs: ForwardInputs
    ) -> Tensor:
        q_THD = qkv.view(len(qkv), -1, heads.head_dim)[:, : heads.num_heads]
        out_THD = attention.attend(q_THD, pool.tensor[:, layer], inputs, window=heads.window)
        return out_THD.flatten(1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate) * up


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dim, in float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _turned(x_THD: Tensor, norm_D: Tensor | None, rotations_T2D: Tensor, eps: float) -> Tensor:
    """The heads normed (if the family does) and rotated: dim d turns with dim d + D / 2."""
    x_THD = x_THD.float()
    if norm_D is not None:
        x_THD = rms_norm(x_THD, norm_D, eps)
    cos, sin = rotations_T2D[:, None, 0], rotations_T2D[:, None, 1]
    first, second = x_THD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
