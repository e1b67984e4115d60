"""A pool on a device: its generations, sums and what a peer may map of it."""

import os
from collections.abc import Iterator
from contextlib import closing

import msgspec
import numpy as np
import pytest
from support.device import FakeDeviceMemory

from kvtransfer.device.driver import CannotMap
from kvtransfer.device.table import table
from kvtransfer.memory.generations import Generations
from kvtransfer.memory.pool import generation_sums
from kvtransfer.plan import NO_BLOCK, whole_blocks
from kvtransfer.transports.cuda_ipc.messages import setup_of
from kvtransfer.transports.cuda_ipc.sink import PeerMemory
from protocol.errors import LayoutMismatch, TransferError

NUM_BLOCKS = 8
BLOCK_BYTES = 512


@pytest.fixture
def memory() -> Iterator[FakeDeviceMemory]:
    with closing(FakeDeviceMemory(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)) as memory:
        yield memory


def test_blocks_are_read_where_they_were_written(memory: FakeDeviceMemory) -> None:
    memory.write(3, b"x" * BLOCK_BYTES)
    assert memory.read(3) == b"x" * BLOCK_BYTES and not any(memory.read(2) + memory.read(4))


def test_a_pool_of_nothing_or_of_half_words_is_refused() -> None:
    for num_blocks, block_bytes in ((0, 512), (1, 0), (1, 24)):
        with pytest.raises(ValueError, match=r"at least 1|no multiple"):
            FakeDeviceMemory(num_blocks=num_blocks, block_bytes=block_bytes)


@pytest.mark.parametrize("block", [-1, NUM_BLOCKS, 1 << 40])
def test_a_block_outside_the_pool_is_refused(memory: FakeDeviceMemory, block: int) -> None:
    with pytest.raises(ValueError, match="not in a pool"):
        memory.read(block)


def test_equal_blocks_have_equal_sums_and_others_do_not(memory: FakeDeviceMemory) -> None:
    for block, byte in ((0, b"a"), (1, b"b"), (2, b"a")):
        memory.write(block, byte * BLOCK_BYTES)
    sums = memory.checksums(whole_blocks(np.array([0, 1, 2], np.uint32), memory.block_bytes))
    assert sums[0] == sums[2] != sums[1]


def test_sums_of_blocks_outside_are_refused(memory: FakeDeviceMemory) -> None:
    with pytest.raises(ValueError, match="of a span"):
        memory.checksums(whole_blocks(np.array([NUM_BLOCKS], np.uint32), memory.block_bytes))


def test_a_device_that_does_not_answer_is_lost_not_waited_for(
    memory: FakeDeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtransfer.memory.device_pool.SUM_S", 0.05)
    with memory.fake.streams[1].held(), pytest.raises(TransferError, match="not summed"):
        memory.checksums(whole_blocks(np.array([0], np.uint32), memory.block_bytes))


def test_generations_of_a_piece_are_added_up_without_the_blocks_it_lacks(
    memory: FakeDeviceMemory,
) -> None:
    memory.generations_N[[1, 2]] = (5, 7)
    blocks_PB = np.array([[1, 2], [2, NO_BLOCK]], np.uint32)
    assert generation_sums(memory.generations_N, blocks_PB).tolist() == [12, 7]


def test_a_mark_happens_when_the_engine_has_got_there(memory: FakeDeviceMemory) -> None:
    with memory.fake.engine.held():
        memory.write(0, b"y" * BLOCK_BYTES)
        mark = memory.mark()
        assert not mark.happened() and not any(memory.block(0))
    assert mark.happened() and memory.read(0) == b"y" * BLOCK_BYTES


def test_a_peer_sees_bytes_and_generations_as_they_change(memory: FakeDeviceMemory) -> None:
    peer = opened(memory)
    memory.write(1, b"z" * BLOCK_BYTES)
    rows_5R = table(whole_blocks(np.array([1], np.uint32), memory.block_bytes))
    driver = memory.driver
    seen = driver.sum(driver.stream(), source=peer.span, table_5R=rows_5R, num_pieces=1)
    assert seen.happened()
    assert seen.take_sums() == memory.checksums(
        whole_blocks(np.array([1], np.uint32), memory.block_bytes)
    )
    peer.close()


def opened(memory: FakeDeviceMemory, **changed: str) -> PeerMemory:
    exported = memory.driver.export(memory.span)
    offer = msgspec.structs.replace(setup_of(memory, exported), **changed)
    return PeerMemory.open(
        memory.driver, offer, [memory.generations_fd(), exported.fd], num_blocks=NUM_BLOCKS,
        block_bytes=BLOCK_BYTES,
    )  # fmt: skip


@pytest.mark.parametrize("field", ["driver", "sum_kind"])
def test_a_pool_of_another_driver_or_sum_is_refused(memory: FakeDeviceMemory, field: str) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LayoutMismatch, match="its driver is"):
        opened(memory, **{field: "another"})
    assert len(os.listdir("/proc/self/fd")) <= num_open  # an earlier test's may close meanwhile


def test_a_pool_that_cannot_be_mapped_gives_back_what_came_with_it(
    memory: FakeDeviceMemory,
) -> None:
    memory.fake.why_no_peer = "no peer access"
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CannotMap, match="no peer access"):
        opened(memory)
    assert len(os.listdir("/proc/self/fd")) <= num_open  # an earlier test's may close meanwhile


def test_generations_of_another_shape_or_unsealed_are_refused(memory: FakeDeviceMemory) -> None:
    fd = memory.generations_fd()
    with pytest.raises(LayoutMismatch, match="bytes"):
        Generations.open(fd, num_blocks=NUM_BLOCKS + 1, block_bytes=BLOCK_BYTES)
    fd = memory.generations_fd()
    with pytest.raises(LayoutMismatch, match="another header"):
        Generations.open(fd, num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES + 16)
    fd = os.memfd_create("unsealed")
    with pytest.raises(LayoutMismatch):
        Generations.open(fd, num_blocks=1, block_bytes=16)


def test_the_pool_is_not_unmapped_beneath_sums_that_nobody_takes(memory: FakeDeviceMemory) -> None:
    memory.begin_sums(whole_blocks(np.array([0], np.uint32), BLOCK_BYTES))
    stream = memory.fake.streams[1]
    assert stream.num_waiting
    memory.close()
    assert not stream.num_waiting
