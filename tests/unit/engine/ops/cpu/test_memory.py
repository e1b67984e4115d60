"""C kernels on a machine that has no memory left."""

import ctypes
from ctypes import c_long, c_void_p

import pytest
import torch

from engine.ops.cpu.build import bound, load
from engine.ops.cpu.layer_args import Heads

ENDLESS = 1 << 40
"""No machine has so many of anything."""


@pytest.mark.parametrize(("head_dim", "num_sequences"), [(ENDLESS, 1), (64, ENDLESS << 18)])
def test_attention_without_memory_says_so(head_dim: int, num_sequences: int) -> None:
    heads = Heads(num_heads=1, num_kv_heads=1, head_dim=head_dim, block_tokens=16)
    starts, nothing = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(64)
    types = (*(c_void_p,) * 6, c_long, c_long)
    attend = bound(load(), "attend_f32_f32", *types, answers=ctypes.c_int)
    at = nothing.data_ptr()
    assert not attend(
        at, at, ctypes.addressof(heads), starts.data_ptr(), starts[1:].data_ptr(), at, 1,
        num_sequences,
    )  # fmt: skip
