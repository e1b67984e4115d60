"""What the source of a cuda_ipc stream says beside its announcements."""

from typing import Final

import msgspec

from kvtransfer.device.driver import Exported
from kvtransfer.memory.device_pool import SUM_KIND, DeviceMemory
from protocol.codec import Codec

NAME: Final = "cuda_ipc"


class CudaIpcSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a welcome: the source's pool on its device. Two descriptors come with it: that of the
    generations, and that of the pool."""

    driver: str
    device: str
    sum_kind: str
    handle: bytes


cuda_ipc_setup: Final[Codec[CudaIpcSetup]] = Codec(CudaIpcSetup, max_bytes=1024)


def setup_of(memory: DeviceMemory, exported: Exported) -> CudaIpcSetup:
    """`exported` is the pool's span."""
    driver = memory.driver
    return CudaIpcSetup(
        driver=driver.name, device=driver.device, sum_kind=SUM_KIND, handle=exported.handle
    )
