"""A worker's pool on a GPU, whose blocks move and which the engine computes in. Loads torch."""

import logging

from torch import Tensor

from kvtransfer.device.collectives import Collectives
from kvtransfer.device.cuda import CudaDriver
from kvtransfer.device.libnccl import Nccl
from kvtransfer.memory.device_pool import DeviceMemory
from protocol.errors import TransferError

log = logging.getLogger(__name__)


def cuda_pool(index: int, *, num_blocks: int, block_bytes: int) -> tuple[DeviceMemory, Tensor]:
    """A pool of zeros on GPU `index` of those visible, moved by NCCL too where there is one; and
    all its bytes, uint8 on the device, shared.

    Raises TransferError when the device has no room.
    """
    driver = CudaDriver(index)
    memory = DeviceMemory(
        driver, num_blocks=num_blocks, block_bytes=block_bytes, collectives=_nccl(driver)
    )
    return memory, driver.tensor(memory.span)


def _nccl(driver: CudaDriver) -> Collectives | None:
    try:
        return Nccl(driver.bind)
    except TransferError as error:
        log.info("blocks do not move by nccl", extra={"why": str(error)})
        return None
