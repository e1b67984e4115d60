"""What every device driver must do, the shipped fake included."""

import mmap
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from support.eventually import eventually
from support.gpu import DRIVERS, ENVIRONMENT, driver_for

from kvtransfer.device.driver import CannotMap, Driver, Sums
from kvtransfer.device.table import table
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from protocol.errors import TransferError

SPAN_BYTES = 64 << 10


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return driver_for(request.param)


@pytest.fixture
def span(driver: Driver) -> Span:
    return driver.allocate(SPAN_BYTES)


def ranges(offsets: list[int], sizes: list[int], starts: list[int]) -> Ranges:
    return Ranges(np.array(offsets), np.array(sizes), np.array(starts))


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(SPAN_BYTES)


def filled(driver: Driver, seed: int) -> Span:
    span = driver.allocate(SPAN_BYTES)
    driver.write(span, 0, content(seed))
    happen(driver)
    return span


def happen(driver: Driver) -> None:
    """Everything the engine launched."""
    mark = driver.mark()
    eventually(mark.happened)


def sums_of(sums: Sums) -> list[int]:
    eventually(sums.happened)
    return [int(value) for value in sums.take_sums()]


def sum_of(driver: Driver, span: Span, where: Ranges) -> list[int]:
    num_pieces = len(where.starts_P) - 1
    stream = driver.stream()
    return sums_of(driver.sum(stream, source=span, table_5R=table(where), num_pieces=num_pieces))


def test_fresh_memory_is_zeros(driver: Driver, span: Span) -> None:
    assert driver.read(span, 0, SPAN_BYTES) == bytes(SPAN_BYTES)


def test_what_is_written_is_read_where_it_was_written(driver: Driver, span: Span) -> None:
    driver.write(span, 4096, b"sixteen bytes in")
    assert driver.read(span, 4096, 16) == b"sixteen bytes in"
    assert not any(driver.read(span, 0, 4096)) and not any(driver.read(span, 4112, 64))


def test_ranges_are_copied_over_ranges_and_nothing_else(driver: Driver, span: Span) -> None:
    source = filled(driver, 1)
    origin = ranges([0, 40_000, 512], [48, 16_400, 4096], [0, 2, 3])
    goal = ranges([32_768, 0, 60_000], [48, 16_400, 4096], [0, 2, 3])
    sums = driver.copy(
        driver.stream(), target=span, source=source, table_5R=table(origin, goal), num_pieces=2
    )
    found = sums_of(sums)
    expected, now = bytearray(SPAN_BYTES), content(1)
    for start, into, size in zip(origin.offsets_R, goal.offsets_R, origin.sizes_R, strict=True):
        expected[into : into + size] = now[start : start + size]
    assert driver.read(span, 0, SPAN_BYTES) == bytes(expected)
    assert found == sum_of(driver, source, origin) == sum_of(driver, span, goal)


def test_a_sum_tells_bytes_and_their_order_apart(driver: Driver) -> None:
    source = filled(driver, 2)
    forth = ranges([0, 4096], [4096, 4096], [0, 2])
    back = ranges([4096, 0], [4096, 4096], [0, 2])
    before = sum_of(driver, source, forth)
    assert before != sum_of(driver, source, back)
    driver.write(source, 8184, b"\0other!\0")
    happen(driver)
    assert before != sum_of(driver, source, forth)


def test_work_of_one_stream_happens_in_order(driver: Driver) -> None:
    spans = [filled(driver, 3), driver.allocate(SPAN_BYTES), driver.allocate(SPAN_BYTES)]
    rows, stream = table(ranges([0], [SPAN_BYTES], [0, 1])), driver.stream()
    for source, target in pairwise(spans):
        last = driver.copy(stream, target=target, source=source, table_5R=rows, num_pieces=1)
    eventually(last.happened)
    assert driver.read(spans[2], 0, SPAN_BYTES) == content(3)


def test_an_event_happens_after_the_work_before_it(driver: Driver, span: Span) -> None:
    source, stream = filled(driver, 4), driver.stream()
    rows = table(ranges([0], [SPAN_BYTES], [0, 1]))
    sums = driver.copy(stream, target=span, source=source, table_5R=rows, num_pieces=1)
    event = stream.record()
    eventually(event.happened)
    assert sums.happened() and event.happened()


@pytest.mark.system
def test_another_process_maps_exported_memory_and_both_see_one(driver: Driver) -> None:
    span = filled(driver, 5)
    exported = driver.export(span)
    command = [
        sys.executable, "-m", "support.device_process", driver.name, driver.device,
        str(SPAN_BYTES), exported.handle.hex(), str(exported.fd),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False,
        pass_fds=[exported.fd],
    )  # fmt: skip
    os.close(exported.fd)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == summed_before(driver, seed=5)
    assert driver.read(span, SPAN_BYTES - 8, 8) == b"was here"


def summed_before(driver: Driver, *, seed: int) -> int:
    (total,) = sum_of(driver, filled(driver, seed), ranges([0], [SPAN_BYTES], [0, 1]))
    return total


def test_a_handle_of_nothing_is_refused(driver: Driver) -> None:
    with open(os.devnull, "rb") as nothing:
        for handle in (b"", b"no handle at all", bytes(32), bytes(200)):
            with pytest.raises(CannotMap):
                driver.open(handle, nothing.fileno(), num_bytes=SPAN_BYTES, device=driver.device)


def test_a_handle_of_less_memory_than_was_told_is_refused(driver: Driver, span: Span) -> None:
    exported = driver.export(span)
    with pytest.raises(CannotMap):
        driver.open(exported.handle, exported.fd, num_bytes=1 << 30, device=driver.device)
    os.close(exported.fd)


def test_a_descriptor_of_something_else_is_refused(driver: Driver, span: Span) -> None:
    another = driver_of_the_same_kind(driver)
    exported = driver.export(span)
    with open(os.devnull, "rb") as nothing, pytest.raises(CannotMap):
        another.open(exported.handle, nothing.fileno(), num_bytes=SPAN_BYTES, device=driver.device)
    os.close(exported.fd)


def driver_of_the_same_kind(driver: Driver) -> Driver:
    return driver_for(driver.name)


def test_no_two_streams_are_one_and_none_outlives_its_use(driver: Driver) -> None:
    streams = [driver.stream() for _ in range(64)]
    assert len({stream.handle for stream in streams}) == 64
    for stream in streams:
        stream.close()
        stream.close()  # once more is nothing


def test_a_stream_goes_back_while_an_event_of_it_is_kept(driver: Driver, span: Span) -> None:
    source, stream = filled(driver, 6), driver.stream()
    rows = table(ranges([0], [SPAN_BYTES], [0, 1]))
    sums = driver.copy(stream, target=span, source=source, table_5R=rows, num_pieces=1)
    found = sums_of(sums)
    stream.close()
    assert sums.happened() and found == sum_of(driver, source, ranges([0], [SPAN_BYTES], [0, 1]))


def test_more_memory_than_there_is_is_refused(driver: Driver) -> None:
    with pytest.raises(TransferError):
        driver.allocate(1 << 50)


def test_memory_goes_back(driver: Driver) -> None:
    for _ in range(3):
        driver.free(driver.allocate(SPAN_BYTES))


def test_registered_host_memory_is_uploaded_and_downloaded_in_order(driver: Driver) -> None:
    host = mmap.mmap(-1, 2 * SPAN_BYTES)
    words = np.frombuffer(host, np.uint8)
    there, back = (Span(words.ctypes.data + at, SPAN_BYTES) for at in (0, SPAN_BYTES))
    driver.register(Span(words.ctypes.data, 2 * SPAN_BYTES))
    words[:SPAN_BYTES] = np.frombuffer(content(3), np.uint8)
    device, stream = driver.allocate(SPAN_BYTES), driver.stream()
    driver.upload(stream, source=there, target=device)
    mark = driver.download(stream, source=device, target=back)
    eventually(mark.happened)
    assert words[SPAN_BYTES:].tobytes() == content(3)
    driver.unregister(Span(words.ctypes.data, 2 * SPAN_BYTES))
