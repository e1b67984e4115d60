"""The KV pool as a tensor over memory that someone else owns.

Made by a worker over the memory that kvtransfer serves from, or alone in tests. Holds no notion
of which block is whose.
"""

# Shapes: B blocks, L layers, 2 keys then values, G KV heads, S token slots of a block, D head dim.

import torch
from torch import Tensor

from protocol.layout import KvLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KvPool:
    """`.tensor` [B, L, 2, G, S, D] over `buffer`, or over fresh memory without one."""

    def __init__(
        self, layout: KvLayout, num_blocks: int, buffer: memoryview | bytearray | None = None
    ) -> None:
        needed = layout.block_bytes * num_blocks
        if buffer is not None and memoryview(buffer).nbytes < needed:
            raise ValueError(
                f"buffer: {memoryview(buffer).nbytes} bytes, {num_blocks} blocks need {needed}"
            )
        self.layout = layout
        self.num_blocks = num_blocks
        dtype = DTYPES[layout.dtype]
        shape = (num_blocks, *layout.shape)
        if buffer is None:
            self.tensor: Tensor = torch.zeros(shape, dtype=dtype)
        else:
            count = needed // dtype.itemsize
            self.tensor = torch.frombuffer(buffer, dtype=dtype, count=count).view(shape)
