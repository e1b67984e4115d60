"""What the CUDA driver calls, in which order, by a library and kernels that are none."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.copy_twins import copy_twin, sums_twin
from support.fake_libcuda import FakeLibcuda, in_process

from kvtransfer.device import cuda
from kvtransfer.device.cuda import CudaDriver
from kvtransfer.device.table import table
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges

SPAN_BYTES = 4096


@pytest.fixture
def library() -> Iterator[FakeLibcuda]:
    fake = FakeLibcuda()
    with in_process(fake):
        yield fake


@pytest.fixture
def driver(library: FakeLibcuda, monkeypatch: pytest.MonkeyPatch) -> CudaDriver:
    """A driver whose kernels are their twins, over the library's memory."""

    def words(address: int) -> torch.Tensor:
        return torch.frombuffer(library.mapped[address], dtype=torch.int64)

    def copy(
        target: int | None, source: int, rows_5R: torch.Tensor, sums_P: torch.Tensor, *,
        longest_words: int,
    ) -> None:  # fmt: skip
        library.calls.append("kernel")
        if target is None:
            sums_twin(words(source), rows_5R, sums_P)
        else:
            copy_twin(words(target), words(source), rows_5R, sums_P)

    def tensor(self: CudaDriver, span: Span) -> torch.Tensor:
        return words(span.address).view(torch.uint8)[: span.num_bytes]

    properties = SimpleNamespace(uuid="01010101-0101-0101-0101-010101010101")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(cuda, "copy", copy)
    monkeypatch.setattr(CudaDriver, "tensor", tensor)
    return CudaDriver()


def rows(num_ranges: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    sizes_R = np.full(num_ranges, 16)
    offsets_R = np.arange(num_ranges) * 16 % SPAN_BYTES
    return table(Ranges(offsets_R, sizes_R, np.array([0, num_ranges])))


def test_streams_are_of_our_own_of_least_priority_and_destroyed(
    driver: CudaDriver, library: FakeLibcuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch hands out 32, round robin: the 33rd link would be on the engine's own."""
    monkeypatch.delattr(torch.cuda, "Stream")
    before = set(library.streams)
    links = [driver.stream() for _ in range(64)]
    assert len({link.handle for link in links} - before) == 64
    assert set(library.priorities) == {0}, "the engine's is -1 or less"
    for link in links:
        link.close()
    assert library.streams == before


def test_events_go_back_with_their_marks(driver: CudaDriver, library: FakeLibcuda) -> None:
    stream, before = driver.stream(), set(library.events)
    marks = [stream.record() for _ in range(8)]
    assert len(library.events - before) == 8 and all(mark.happened() for mark in marks)
    del marks
    assert library.events <= before


def test_a_launch_is_one_upload_one_kernel_one_download_and_an_event(
    driver: CudaDriver, library: FakeLibcuda
) -> None:
    source, target, stream = (
        driver.allocate(SPAN_BYTES),
        driver.allocate(SPAN_BYTES),
        driver.stream(),
    )
    library.mapped[source.address][:16] = bytes(range(16))
    library.calls.clear()
    sums = driver.copy(stream, target=target, source=source, table_5R=rows(), num_pieces=1)
    assert library.calls == ["MemcpyHtoDAsync", "kernel", "MemcpyDtoHAsync", "EventRecord"]
    assert library.mapped[target.address][:16] == bytes(range(16))
    again = driver.sum(stream, source=target, table_5R=rows(), num_pieces=1)
    assert sums.happened() and again.happened() and sums.take_sums() == again.take_sums() != 0


def test_launches_use_the_same_words_again(driver: CudaDriver, library: FakeLibcuda) -> None:
    span, stream = driver.allocate(SPAN_BYTES), driver.stream()
    library.calls.clear()
    for _ in range(100):
        assert driver.sum(stream, source=span, table_5R=rows(), num_pieces=1).happened()
    for _ in range(100):
        driver.sum(stream, source=span, table_5R=rows(), num_pieces=1)  # and nobody asks
    assert not {"MemHostAlloc", "MemCreate"} & set(library.calls)


def test_words_under_way_are_nobody_elses(driver: CudaDriver, library: FakeLibcuda) -> None:
    span, stream = driver.allocate(SPAN_BYTES), driver.stream()
    library.mapped[span.address][:SPAN_BYTES] = np.random.default_rng(1).bytes(SPAN_BYTES)
    library.events_happen = False
    under_way = [
        driver.sum(stream, source=span, table_5R=rows(number), num_pieces=1)
        for number in range(1, 60)
    ]
    assert not any(sums.happened() for sums in under_way)
    library.events_happen = True
    found = [int(sums.take_sums()[0]) for sums in under_way if sums.happened()]
    assert len(set(found)) == 59


def test_a_table_larger_than_the_words_there_are_is_carried(
    driver: CudaDriver, library: FakeLibcuda
) -> None:
    span, stream = driver.allocate(SPAN_BYTES), driver.stream()
    library.mapped[span.address][:16] = b"x" * 16
    sums = driver.sum(stream, source=span, table_5R=rows(5_000), num_pieces=1)
    assert sums.happened() and sums.take_sums()[0]


def test_staging_is_not_filled_with_zeros(driver: CudaDriver, library: FakeLibcuda) -> None:
    library.calls.clear()
    driver.allocate(SPAN_BYTES, zeros=False)
    assert library.calls == ["MemCreate", "MemMap"]
    driver.allocate(SPAN_BYTES)
    assert library.calls[2:] == ["MemCreate", "MemMap", "MemsetD8Async", "StreamSynchronize"]
