"""The steps a model is made of, and the choice of who computes them.

`engine.model` calls an `Ops`; there are two: the C kernels (`engine.native.ops`) and their torch
twins (`engine.layers`), which are the oracle in tests and serve where nothing can be compiled.
The residual is float32 everywhere; `io_dtype` is what flows into and out of the linears.
"""

# Shapes: T tokens, K features in, N features out, H query heads, G KV heads, D head dim.

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.inputs import ForwardInputs
from engine.kvpool import KvPool

log = logging.getLogger(__name__)


class Linear(Protocol):
    def __call__(self, x_TK: Tensor) -> Tensor:
        """y_TN, in the ops' io_dtype."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """How one layer splits its qkv, and what it does to the heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    window: int | None
    q_norm_D: Tensor | None  # float32
    k_norm_D: Tensor | None


class Ops(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def io_dtype(self) -> torch.dtype: ...

    def linear(self, weight_NK: Tensor, bias_N: Tensor | None) -> Linear:
        """A linear with its weights laid out as this machine likes them; may take the tensor."""
        ...

    def norm(self, x_TK: Tensor, delta_TK: Tensor | None, weight_K: Tensor, eps: float) -> Tensor:
        """Adds `delta` to the residual `x` in place; the RMS norm of the sum."""
        ...

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotations_T2D: Tensor,
        heads: HeadShape,
        pool: KvPool,
        layer: int,
        inputs: ForwardInputs,
    ) -> None:
        """Norms (if any) and rotates q in place in qkv[T, (H + 2 G) D]; k and v to the pool."""
        ...

    def attend(
        self, qkv: Tensor, heads: HeadShape, pool: KvPool, layer: int, inputs: ForwardInputs
    ) -> Tensor:
        """[T, H D]: each token over its sequence's KV up to itself."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(first half) * second half of [T, 2 F]."""
        ...


def choose_ops(*, dtype: torch.dtype, native: bool | None = None) -> Ops:
    """The fastest ops for weights of `dtype` here. `native` False asks for the torch twins;
    True for the kernels, raising `protocol.kernels.NoKernels` where there are none."""
    from engine.layers import TorchOps
    from engine.native.build import NoKernels, load
    from engine.native.linears import onednn_works
    from engine.native.ops import NativeOps

    onednn = dtype == torch.bfloat16 and has_bf16_hardware() and onednn_works(dtype)
    io_dtype = torch.bfloat16 if onednn else torch.float32
    if native is False:
        return TorchOps(io_dtype=dtype)
    try:
        return NativeOps(load(), io_dtype=io_dtype, kv_dtype=dtype, onednn=onednn)
    except NoKernels as error:
        if native:
            raise
        log.warning("no C kernels, torch serves instead", extra={"why": str(error)})
        return TorchOps(io_dtype=dtype)


def has_bf16_hardware() -> bool:
    """Whether oneDNN multiplies bfloat16 in hardware here (AMX or AVX512-BF16). It accepts
    bfloat16 on every AVX512 machine, but widens it in slow steps: our own kernel is faster."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
