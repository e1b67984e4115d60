"""The one pool of a worker: blocks that the engine computes in and that kvtransfer moves.

Made by both workers. Loads torch for a GPU only, as only who makes a device pool does.
"""

from dataclasses import dataclass
from typing import Any

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    memory: BlockMemory | DeviceMemory
    blocks: Any
    """All its bytes, shared: a memoryview on a host, a torch tensor of uint8 on a GPU."""


def make_pool(
    gpu: int | None, *, num_blocks: int, block_bytes: int, helped: bool = False, huge: bool = False
) -> WorkerPool:
    """A pool of zeros on GPU `gpu` of those visible, or in this host's memory, to which `helped`
    and `huge` apply (`kvtransfer.memory.host_pool.BlockMemory.create`).

    Raises TransferError when the GPU has no room.
    """
    if gpu is not None:
        from kvtransfer.memory.cuda_pool import cuda_pool

        memory, blocks_B = cuda_pool(gpu, num_blocks=num_blocks, block_bytes=block_bytes)
        return WorkerPool(memory=memory, blocks=blocks_B)
    here = BlockMemory.create(
        num_blocks=num_blocks, block_bytes=block_bytes, helped=helped, huge=huge
    )
    return WorkerPool(memory=here, blocks=here.blocks)
