"""Pools on a fake device, which a test can look into as into host memory."""

from collections.abc import Sequence

from support.fake_collectives import FakeCollectives
from support.fake_driver import FakeDriver

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transport_names import DIRECT_TRANSPORTS


class FakeDeviceMemory(DeviceMemory):
    def __init__(
        self, *, num_blocks: int, block_bytes: int, driver: FakeDriver | None = None
    ) -> None:
        self.fake = driver or FakeDriver()
        self.fake_collectives = FakeCollectives(self.fake)
        super().__init__(
            self.fake, num_blocks=num_blocks, block_bytes=block_bytes,
            collectives=self.fake_collectives,
        )  # fmt: skip

    @property
    def blocks(self) -> memoryview:
        """All blocks' bytes, as of a host pool."""
        return self.fake.bytes_of(self.span)

    def block(self, block_id: int) -> memoryview:
        start = block_id * self.block_bytes
        return self.blocks[start : start + self.block_bytes]


def pool_for(
    transports: Sequence[str], *, num_blocks: int, block_bytes: int, helped: bool = False,
    on_device: bool = False,
) -> BlockMemory | FakeDeviceMemory:  # fmt: skip
    """A pool whose blocks these transports can move, in host memory if that may be."""
    if on_device or set(transports) & set(DIRECT_TRANSPORTS):
        return FakeDeviceMemory(num_blocks=num_blocks, block_bytes=block_bytes)
    return BlockMemory.create(num_blocks=num_blocks, block_bytes=block_bytes, helped=helped)
