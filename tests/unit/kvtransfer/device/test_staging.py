"""DeviceStaging that many links share: used again, bounded, and given back when the pool closes."""

import pytest
from support.fake_driver import FakeDriver

from kvtransfer.device.staging import DeviceStaging
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

SPAN_BYTES = 1 << 16


def taken(staging: DeviceStaging, num_bytes: int = SPAN_BYTES) -> Span:
    span = staging.take_span(num_bytes)
    assert span is not None
    return span


def test_what_comes_back_is_used_again() -> None:
    staging = DeviceStaging(FakeDriver())
    span = taken(staging)
    staging.return_span(span)
    assert taken(staging) == span and staging.num_bytes == SPAN_BYTES


def test_all_links_together_have_no_more_than_the_bound() -> None:
    staging = DeviceStaging(FakeDriver(), most_bytes=3 * SPAN_BYTES)
    spans = [taken(staging) for _ in range(3)]
    assert staging.take_span(SPAN_BYTES) is None
    staging.return_span(spans[1])
    assert taken(staging) == spans[1]


def test_one_chunk_larger_than_the_bound_is_staged_alone() -> None:
    staging = DeviceStaging(FakeDriver(), most_bytes=SPAN_BYTES)
    taken(staging, 4 * SPAN_BYTES)
    assert staging.take_span(SPAN_BYTES) is None


def test_a_device_that_is_full_gives_what_it_gave_before() -> None:
    driver = FakeDriver()
    staging = DeviceStaging(driver)
    span = taken(staging)
    driver.room_bytes = 0
    assert staging.take_span(SPAN_BYTES) is None
    staging.return_span(span)
    assert taken(staging) == span


def test_a_device_without_room_for_one_span_says_so() -> None:
    with pytest.raises(TransferError, match="no room"):
        DeviceStaging(FakeDriver(room_bytes=SPAN_BYTES - 1)).take_span(SPAN_BYTES)


def test_what_is_in_use_at_the_end_is_freed_when_it_comes_back() -> None:
    driver = FakeDriver()
    staging = DeviceStaging(driver)
    idle, used = taken(staging), taken(staging)
    staging.return_span(idle)
    staging.close()
    assert driver.num_spans == 1
    staging.return_span(used)
    assert driver.num_spans == 0
