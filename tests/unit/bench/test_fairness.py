"""The bars of `bench.fairness`, smaller: virtual time, so the figures are the same everywhere."""

import pytest

from bench.fairness import (
    SHARE_BAR,
    TTFT_BAR,
    FairJourneys,
    beside_a_greedy_one,
    fair_shares,
    least_of_fair_share,
    serve,
    with_urgent,
)
from bench.placement_sim.queue import FirstCome

SIZE, SECONDS = 2, 90.0


# Who asks for less than its share gets all of it, and the difference is what had not ended when the
# time was up: in 60 counted seconds up to a tenth of its tokens, in 120 a twentieth.
@pytest.mark.parametrize(("part", "seconds"), [(0.18, 150.0), (0.3, SECONDS)])
def test_a_tenant_with_ten_times_the_demand_leaves_the_others_their_share(
    part: float, seconds: float
) -> None:
    streams = beside_a_greedy_one(part, num_workers=SIZE)
    run = serve(streams, queue=FairJourneys(), num_workers=SIZE, seconds=seconds)
    assert least_of_fair_share(run) >= SHARE_BAR


def test_first_come_first_served_does_not() -> None:
    streams = beside_a_greedy_one(0.3, num_workers=SIZE)
    run = serve(streams, queue=FirstCome(), num_workers=SIZE, seconds=60.0)
    assert least_of_fair_share(run) < SHARE_BAR / 2


def test_an_urgent_band_hardly_feels_an_overload() -> None:
    calm, busy = (
        serve(
            with_urgent(load, num_workers=SIZE),
            queue=FairJourneys(),
            num_workers=SIZE,
            seconds=SECONDS,
        ).ttft_p99_s("urgent")
        for load in (0.6, 1.8)
    )
    assert 0 < busy <= TTFT_BAR * calm


def test_fair_shares_give_nobody_more_than_it_asks_for() -> None:
    asked = {"a": 10.0, "b": 50.0, "c": 500.0}
    assert fair_shares(asked, 100.0) == {"a": 10.0, "b": 45.0, "c": 45.0}
    assert fair_shares(asked, 1_000.0) == asked
