"""What the C kernels know of a layer: `struct heads` of heads.h.

To be made once for each layer of a pool: filling it costs as much as a step.
"""

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass

from torch import Tensor

from engine.kvcache.pool import KvPool
from engine.ops.contract import HeadShape


class Heads(ctypes.Structure):
    """struct heads of heads.h."""

    _fields_ = (
        ("layer_pool", c_void_p), ("block_stride", c_int64), ("block_tokens", c_int64),
        ("num_heads", c_int64), ("num_kv_heads", c_int64), ("head_dim", c_int64),
        ("window", c_int64),
        ("q_norm", c_void_p), ("k_norm", c_void_p), ("sinks", c_void_p),
        ("whole_q", c_int64), ("whole_k", c_int64), ("centred", c_int64),
        ("scale", c_float), ("softcap", c_float), ("norm_eps", c_float),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """One layer of one pool. Holds what its addresses point to."""

    heads: HeadShape
    pool: KvPool
    structure: Heads
    address: int
    q_width: int
    """Features that attention answers: H D."""


def site(heads: HeadShape, pool: KvPool) -> Site:
    tensor, layout = pool.tensor, pool.layout
    tensors = (heads.q_norm, heads.k_norm, heads.sinks_H)
    for each in tensors:
        assert each is None or (each.is_contiguous() and each.element_size() == 4)
    q_norm, k_norm, sinks = (0 if each is None else each.data_ptr() for each in tensors)
    structure = Heads(
        layer_pool=tensor.data_ptr() + heads.layer * tensor.stride(1) * tensor.element_size(),
        block_stride=tensor.stride(0), block_tokens=layout.block_tokens,
        num_heads=heads.num_heads, num_kv_heads=heads.num_kv_heads, head_dim=heads.head_dim,
        window=heads.window or 0,
        q_norm=q_norm, k_norm=k_norm, sinks=sinks,
        whole_q=_is_whole(heads.q_norm, heads), whole_k=_is_whole(heads.k_norm, heads),
        centred=heads.centred_norms,
        scale=heads.scale, softcap=heads.softcap or 0.0, norm_eps=heads.norm_eps,
    )  # fmt: skip
    width = heads.num_heads * heads.head_dim
    return Site(heads, pool, structure, ctypes.addressof(structure), width)


def _is_whole(weight: Tensor | None, heads: HeadShape) -> bool:
    return weight is not None and not heads.centred_norms and len(weight) != heads.head_dim
