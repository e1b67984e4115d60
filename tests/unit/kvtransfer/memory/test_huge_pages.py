"""Pools in huge pages: the same bytes, and pages that the kernel really made huge."""

from pathlib import Path

import pytest
from support.pool_views import view_of

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.sealed import HUGE_BYTES

MIB = 1 << 20


def huge_kib(address: int) -> int:
    """KiB of the mapping at an address that are mapped by huge pages."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            found = low <= address < high
        elif found and first == "ShmemPmdMapped:":
            return int(line.split()[1])
    raise AssertionError("no such mapping")


def test_a_pool_in_huge_pages_is_mapped_by_them_in_both_processes() -> None:
    memory = BlockMemory.create(num_blocks=32, block_bytes=MIB, huge=True)
    if not huge_kib(memory.span.address):
        memory.close()
        pytest.skip("this kernel does not collapse shared memory")
    reader = view_of(memory)
    memory.block(31)[-4:] = b"last"
    assert bytes(reader.block(31)[-4:]) == b"last"
    assert not any(reader.block(index)[0] for index in range(31))  # the kernel may have made few
    if reader.span.address % HUGE_BYTES == 0:  # not in an address space full of holes
        assert huge_kib(reader.span.address) > 0
    reader.close()
    memory.close()


def test_a_small_pool_asked_for_in_huge_pages_is_an_ordinary_one() -> None:
    memory = BlockMemory.create(num_blocks=3, block_bytes=4096, huge=True)
    memory.block(2)[:] = bytes([7]) * 4096
    assert bytes(memory.block(2)[:2]) == b"\x07\x07"
    memory.close()
