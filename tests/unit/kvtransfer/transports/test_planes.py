"""The table of data planes: what is in it, and what is not asked of them."""

from contextlib import closing

import pytest
from support import memory_plane
from support.device import FakeDeviceMemory

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transport_names import DEVICE_TRANSPORTS, DIRECT_TRANSPORTS, HOST_TRANSPORTS
from kvtransfer.transports import planes
from kvtransfer.transports.base import ListenOptions, Unreachable
from protocol.ids import Epoch

LISTENING = ListenOptions(host="127.0.0.1", epoch=Epoch(1))


@pytest.mark.parametrize("name", DIRECT_TRANSPORTS)
def test_a_plane_between_devices_moves_no_host_pool(name: str) -> None:
    with closing(BlockMemory.create(num_blocks=1, block_bytes=64)) as memory:
        assert name not in planes.of_pool(memory)
        with pytest.raises(Unreachable, match="in host memory"):
            planes.listen(name, memory, LISTENING)


@pytest.mark.parametrize("name", ["ucx", memory_plane.NAME])
def test_a_plane_between_hosts_moves_no_device_pool(name: str) -> None:
    with closing(FakeDeviceMemory(num_blocks=1, block_bytes=64)) as memory:
        assert name not in planes.of_pool(memory)
        with pytest.raises(Unreachable, match="on a device"):
            planes.listen(name, memory, LISTENING)


def test_shared_memory_and_tcp_move_both_and_come_last_for_devices() -> None:
    both = [name for name in DEVICE_TRANSPORTS if name in HOST_TRANSPORTS]
    assert both == ["shm", "tcp"] and (*DIRECT_TRANSPORTS, *both) == DEVICE_TRANSPORTS


def test_a_plane_that_was_added_is_found_by_its_name() -> None:
    planes.check([memory_plane.NAME])
    with closing(BlockMemory.create(num_blocks=1, block_bytes=64)) as memory:
        listener = planes.listen(memory_plane.NAME, memory, LISTENING)
        assert isinstance(listener, memory_plane.MemoryListener)
        listener.close()


@pytest.mark.parametrize("names", [[], ["pigeon"], ["tcp", "pigeon"]])
def test_names_that_are_not_in_the_table_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="known are"):
        planes.check(names)
