"""The KV pool as a tensor over memory that someone else owns.

Holds no notion of which block is whose.
"""

# Shapes: B blocks, L layers, 2 keys then values, G KV heads, S token slots of a block, D head dim.

import torch
from torch import Tensor

from protocol.layout import KvLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Buffer = memoryview | bytearray | Tensor


def fewest_blocks(layout: KvLayout) -> int:
    """Of a pool that serves anybody: two of each KV group, a full one and the one that follows."""
    return 2 * layout.num_groups


class KvPool:
    """`.tensor` [B, L, 2, G, S, D] over `buffer`, or over fresh memory of `device` without one."""

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        buffer: Buffer | None = None,
        *,
        device: torch.device | None = None,
    ) -> None:
        """A tensor as buffer is of bytes, on any device. Raises ValueError when it is too small."""
        needed = layout.block_bytes * num_blocks
        self.layout = layout
        self.num_blocks = num_blocks
        dtype = DTYPES[layout.dtype]
        shape = (num_blocks, *layout.shape)
        if buffer is None:
            self.tensor: Tensor = torch.zeros(shape, dtype=dtype, device=device)
            return
        num_bytes = buffer.nbytes if isinstance(buffer, Tensor) else memoryview(buffer).nbytes
        if num_bytes < needed:
            raise ValueError(f"buffer: {num_bytes} bytes, {num_blocks} blocks need {needed}")
        if isinstance(buffer, Tensor):
            self.tensor = buffer[:needed].view(dtype).view(shape)
        else:
            count = needed // dtype.itemsize
            self.tensor = torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)
