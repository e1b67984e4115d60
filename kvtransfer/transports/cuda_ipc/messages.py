"""What the source of a cuda_ipc stream says beside its announcements."""

from typing import Final

import msgspec

from kvtransfer.memory.device_pool import SUM_KIND, DeviceMemory
from protocol.codec import Codec

NAME: Final = "cuda_ipc"


class CudaIpcSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a welcome: the source's pool on its device."""

    driver: str
    device: str
    sum_kind: str
    handle: bytes


cuda_ipc_setup: Final[Codec[CudaIpcSetup]] = Codec(CudaIpcSetup, max_bytes=1024)


def setup_of(memory: DeviceMemory) -> CudaIpcSetup:
    """Raises TransferError when the pool cannot be handed on."""
    driver = memory.driver
    return CudaIpcSetup(
        driver=driver.name, device=driver.device, sum_kind=SUM_KIND,
        handle=driver.export(memory.span),
    )  # fmt: skip
