import pytest

from protocol.ids import WorkerId
from worker.reported.transfer_speed import NUM_KEPT, FetchSpeed, TransferSpeed
from worker.reported.transport_uses import TransportUses


def fetch(num_bytes: int = 1_000_000, *, flow_s: float = 0.01, exposed_s: float) -> FetchSpeed:
    return FetchSpeed(num_bytes=num_bytes, flow_s=flow_s, exposed_s=exposed_s)


def test_nothing_is_claimed_before_it_is_measured() -> None:
    speed = TransferSpeed()
    assert (speed.bytes_per_s, speed.latency_s) == (0.0, 0.0)


def test_a_fetch_after_its_prefill_tells_what_it_takes_besides_its_bytes() -> None:
    speed = TransferSpeed()
    speed.add_fetch(fetch(flow_s=0.01, exposed_s=0.012))
    assert speed.bytes_per_s == pytest.approx(1e8)
    assert speed.latency_s == pytest.approx(0.002)


def test_one_whose_bytes_came_during_the_prefill_bounds_it() -> None:
    speed = TransferSpeed()
    speed.add_fetch(fetch(flow_s=0.05, exposed_s=0.003))
    speed.add_fetch(fetch(flow_s=0.05, exposed_s=0.001))
    assert speed.latency_s == pytest.approx(0.001)


def test_a_source_that_was_stopped_once_does_not_look_slow() -> None:
    speed = TransferSpeed()
    for index in range(12):
        stopped_s = 2.0 if index == 6 else 0.0
        speed.add_fetch(fetch(flow_s=0.01 + stopped_s, exposed_s=0.012 + stopped_s))
    assert speed.bytes_per_s == pytest.approx(1e8)
    assert speed.latency_s == pytest.approx(0.002)


def test_small_fetches_do_not_make_large_ones_look_slow() -> None:
    speed = TransferSpeed()
    for _ in range(5):
        speed.add_fetch(fetch(1000, flow_s=0.001, exposed_s=0.003))
        speed.add_fetch(fetch(10_000_000, flow_s=0.1, exposed_s=0.102))
    assert speed.bytes_per_s == pytest.approx(1e8)


def test_a_way_that_became_slow_is_slow_after_as_many_fetches_as_are_kept() -> None:
    speed = TransferSpeed()
    for flow_s in (0.01, 0.1):
        for _ in range(NUM_KEPT):
            speed.add_fetch(fetch(flow_s=flow_s, exposed_s=flow_s + flow_s / 5))
    assert speed.bytes_per_s == pytest.approx(1e7)
    assert speed.latency_s == pytest.approx(0.02)


def test_each_pair_has_a_speed_of_its_own_and_who_lends_measures_none() -> None:
    uses = TransportUses()
    for peer, flow_s in (("near", 0.01), ("far", 0.1)):
        fetched = fetch(flow_s=flow_s, exposed_s=2 * flow_s)
        uses.add(
            peer=WorkerId(peer), transport="tcp", why="", num_bytes=fetched.num_bytes,
            fetched=fetched,
        )  # fmt: skip
    uses.add(peer=WorkerId("fetcher"), transport="tcp", why="", num_bytes=5)
    fetcher, far, near = uses.latest()
    assert near.bytes_per_s == pytest.approx(10 * far.bytes_per_s)
    assert near.latency_s == pytest.approx(0.01)
    assert far.latency_s == pytest.approx(0.1)
    assert (fetcher.bytes_per_s, fetcher.latency_s) == (0.0, 0.0)
