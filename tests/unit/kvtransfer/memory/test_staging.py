"""Rings of page-locked spans: where they are freed, and what a device that fails costs."""

import threading
from contextlib import closing

from support.eventually import eventually
from support.fake_driver import FakeDriver, FakeStream

from kvtransfer.memory.staging import Staging
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

SPAN_BYTES = 4096


class SlowToFree(FakeDriver):
    """As a device with much to do: unlocking memory waits until it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.is_idle = threading.Event()
        self.failure = ""

    def unregister(self, span: Span) -> None:
        assert self.is_idle.wait(10.0)
        super().unregister(span)
        if self.failure:
            raise TransferError(self.failure)


def test_whoever_retires_a_ring_or_opens_another_never_waits_for_the_device() -> None:
    driver = SlowToFree()
    with closing(Staging(driver)) as staging:
        retired = staging.open_ring(span_bytes=SPAN_BYTES)
        staging.retire(retired)
        staging.retire(staging.open_ring(span_bytes=SPAN_BYTES))
        assert staging.used_bytes == 2 * retired.num_bytes
        driver.is_idle.set()
    assert staging.used_bytes == 0 and not driver.registered and driver.num_spans == 0


def test_a_ring_is_freed_when_what_was_launched_on_it_is_done_though_nobody_comes_by() -> None:
    driver, stream = FakeDriver(), FakeStream(1)
    staging = Staging(driver)
    with stream.held():
        staging.retire(staging.open_ring(span_bytes=SPAN_BYTES), (stream.record(),))
        assert staging.used_bytes and driver.registered
    eventually(lambda: not staging.used_bytes)
    assert not driver.registered


def test_memory_that_cannot_be_unlocked_stays_counted_and_costs_no_link() -> None:
    driver = SlowToFree()
    driver.failure = "the device is lost"
    driver.is_idle.set()
    with closing(Staging(driver)) as staging:
        lost = staging.open_ring(span_bytes=SPAN_BYTES)
        staging.retire(lost)
        staging.close()
        assert staging.used_bytes == lost.num_bytes
        driver.failure = ""
        staging.retire(staging.open_ring(span_bytes=SPAN_BYTES))
    assert staging.used_bytes == lost.num_bytes
