import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from support.pool_views import view_of
from xxhash import xxh3_64_intdigest

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.plan import Ranges, whole_blocks
from protocol.errors import LayoutMismatch


def whole(pool: BlockMemory, *blocks: int) -> Ranges:
    return whole_blocks(np.asarray(blocks, np.int64), pool.block_bytes)


@pytest.fixture
def pool() -> Iterator[BlockMemory]:
    pool = BlockMemory.create(num_blocks=5, block_bytes=96)
    yield pool
    pool.close()


def test_a_new_pool_is_zeros_with_generation_zero(pool: BlockMemory) -> None:
    assert len(pool.blocks) == 5 * 96 and not any(pool.blocks)
    assert list(pool.generations) == [0] * 5


def test_a_block_is_its_range_of_the_whole(pool: BlockMemory) -> None:
    pool.block(3)[:] = b"x" * 96
    assert bytes(pool.blocks[3 * 96 : 4 * 96]) == b"x" * 96
    assert not any(pool.blocks[: 3 * 96]) and not any(pool.blocks[4 * 96 :])


def test_a_tensor_can_be_laid_over_the_blocks(pool: BlockMemory) -> None:
    array = np.frombuffer(pool.blocks, dtype=np.float32)
    array[:] = 1.5
    assert pool.block(4)[:4] == np.float32(1.5).tobytes()


def test_a_reader_sees_blocks_and_generations_and_cannot_write(pool: BlockMemory) -> None:
    reader = view_of(pool)
    pool.block(1)[:5] = b"hello"
    pool.generations[1] = 7
    assert bytes(reader.block(1)[:5]) == b"hello" and reader.generations[1] == 7
    with pytest.raises(TypeError, match="read-only"):
        reader.block(1)[0] = 1
    reader.close()


def test_whoever_gets_the_descriptor_cannot_write_through_it(pool: BlockMemory) -> None:
    reopened = os.open(f"/proc/self/fd/{pool.fd}", os.O_RDWR)
    for attempt in (
        lambda: mmap.mmap(reopened, 4096),
        lambda: os.write(reopened, b"x"),
        lambda: os.ftruncate(reopened, 0),
    ):
        with pytest.raises(PermissionError):
            attempt()
    os.close(reopened)


@pytest.mark.parametrize("block_id", [-1, 5, 2**40])
def test_a_block_outside_the_pool_is_refused(pool: BlockMemory, block_id: int) -> None:
    with pytest.raises(ValueError, match="block_id"):
        pool.block(block_id)
    with pytest.raises(ValueError, match="ranges"):
        pool.checksums(whole(pool, block_id))


@pytest.mark.parametrize(
    ("num_blocks", "block_bytes"), [(4, 96), (6, 96), (5, 95), (5, 97), (0, 0)]
)
def test_a_pool_of_another_shape_is_not_mapped(
    pool: BlockMemory, num_blocks: int, block_bytes: int
) -> None:
    with pytest.raises(LayoutMismatch):
        BlockMemory.open(pool.reader_fd(), num_blocks=num_blocks, block_bytes=block_bytes)


def test_a_file_that_could_shrink_is_not_mapped(pool: BlockMemory) -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, os.fstat(pool.fd).st_size)
    with pytest.raises(LayoutMismatch, match="sealed"):
        BlockMemory.open(fd, num_blocks=5, block_bytes=96)


def test_a_sealed_file_with_other_contents_is_not_mapped() -> None:
    impostor = BlockMemory.create(num_blocks=5, block_bytes=96, helped=True)
    os.pwrite(impostor.fd, b"whatever", 0)
    with pytest.raises(LayoutMismatch, match="header"):
        BlockMemory.open(impostor.reader_fd(), num_blocks=5, block_bytes=96)
    impostor.close()


def test_a_pool_needs_blocks_and_bytes() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockMemory.create(num_blocks=0, block_bytes=1)


def test_closing_twice_is_closing_once() -> None:
    pool = BlockMemory.create(num_blocks=1, block_bytes=1)
    pool.close()
    pool.close()


def test_a_checksum_tells_one_flipped_bit(pool: BlockMemory) -> None:
    before = xxh3_64_intdigest(pool.block(0))
    pool.block(0)[50] ^= 1
    assert xxh3_64_intdigest(pool.block(0)) != before


@pytest.mark.parametrize(("num_blocks", "block_bytes"), [(0, 96), (5, 0)])
def test_a_file_that_says_it_holds_nothing_is_not_mapped(num_blocks: int, block_bytes: int) -> None:
    fd = os.memfd_create("empty", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mmap.PAGESIZE)
    os.pwrite(fd, struct.pack("<8sQQ", b"BatonKV1", num_blocks, block_bytes), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with pytest.raises(LayoutMismatch):
        BlockMemory.open(fd, num_blocks=num_blocks, block_bytes=block_bytes)
