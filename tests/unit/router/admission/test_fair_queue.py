"""Strict bands, bounds, and who has to go."""

import pytest

from router.admission.fair_queue import MOST_DEBTORS, FairQueue, QueueBounds
from router.admission.queued_request import QueuedRequest


def asked(
    tenant: str = "a", num_tokens: int = 100, *, band: int = 0, weight: float = 1.0
) -> QueuedRequest:
    return QueuedRequest(
        tenant=tenant, weight=weight, band=band, num_prompt_tokens=num_tokens, num_output_tokens=0,
        ends_at=1e9,
    )  # fmt: skip


def queue(num_requests: int = 100, num_tokens: int = 100_000) -> FairQueue:
    return FairQueue(QueueBounds(num_requests=num_requests, num_tokens=num_tokens))


def fill(queue: FairQueue, *requests: QueuedRequest) -> None:
    for one in requests:
        assert queue.add(one) == ()


def gone(queue: FairQueue, request: QueuedRequest) -> list[QueuedRequest]:
    return [one.request for one in queue.add(request)]


def drained(queue: FairQueue) -> list[QueuedRequest]:
    order = []
    while (head := queue.head()) is not None:
        order.append(head)
        queue.remove(head, pays=True)
    return order


def test_a_more_urgent_band_is_served_first_whatever_others_weigh() -> None:
    patient, urgent = asked(band=1, weight=100.0), asked("b", 9_000, band=-1)
    waiting = queue()
    fill(waiting, patient, urgent)
    assert drained(waiting) == [urgent, patient]


def test_nobody_overtakes_who_waits_in_the_same_band_or_a_better_one() -> None:
    waiting = queue()
    assert not waiting.waits_before(0)
    fill(waiting, asked(band=0))
    assert [waiting.waits_before(band) for band in (-1, 0, 1)] == [False, True, True]


def test_when_it_is_full_the_newest_of_the_greediest_tenant_goes() -> None:
    waiting, greedy = queue(num_requests=8), [asked("greedy") for _ in range(5)]
    fill(waiting, *greedy, asked("b"), asked("c"), asked("d"))
    modest = asked("e")
    (out,) = waiting.add(modest)
    assert out.request is greedy[-1] and not out.is_over_part
    assert modest in drained(waiting)


def test_the_last_band_makes_room_for_a_better_one() -> None:
    waiting, last = queue(num_requests=4), asked("modest", 1, band=5)
    fill(waiting, asked("a", 900), asked("b", 900), last, asked("c", 900))
    assert gone(waiting, asked("a", 900)) == [last]


def test_no_tenant_has_more_than_its_part() -> None:
    waiting = queue(num_requests=8)
    fill(waiting, *[asked("greedy") for _ in range(6)])
    newest = asked("greedy")
    (out,) = waiting.add(newest)
    assert out.request is newest and out.is_over_part
    assert waiting.num_requests == 6


def test_of_its_own_the_least_urgent_goes() -> None:
    waiting, patient = queue(num_requests=8), asked("greedy", band=3)
    fill(waiting, patient, *[asked("greedy") for _ in range(5)])
    assert gone(waiting, asked("greedy")) == [patient]


def test_who_goes_itself_drives_nobody_out() -> None:
    waiting = queue(num_requests=100, num_tokens=1_000)
    fill(waiting, asked("a", 400), asked("b", 380), asked("c", 200))
    large = asked("d", 700)
    before = [one.tenant for one in drained(_copy_of(waiting))]
    assert gone(waiting, large) == [large]
    assert [one.tenant for one in drained(waiting)] == before


def test_one_that_is_larger_than_the_queue_waits_where_nobody_else_does() -> None:
    waiting = queue(num_tokens=1_000)
    fill(waiting, asked(num_tokens=5_000))
    assert waiting.num_requests == 1


def test_an_answer_longer_than_expected_is_paid_for_later() -> None:
    waiting = queue()
    fill(waiting, *[asked("a", 500) for _ in range(9)], *[asked("b", 500) for _ in range(9)])
    waiting.charge("a", 0, 2_000)
    order = [one.tenant for one in drained(waiting)]
    assert order[:8].count("a") == 2


def test_a_debt_outlives_the_line_but_not_the_queue() -> None:
    waiting, only = queue(), asked("a", 500)
    fill(waiting, only, asked("b", 500))
    waiting.remove(only)
    waiting.charge("a", 0, 1_500)
    fill(waiting, asked("a", 500), *[asked("b", 500) for _ in range(5)])
    assert [one.tenant for one in drained(waiting)][:4] == ["b", "b", "b", "a"]
    fill(waiting, asked("a", 500), asked("b", 500))
    assert [one.tenant for one in drained(waiting)] == ["a", "b"]


@pytest.mark.parametrize(("num_others", "first"), [(1, "honest"), (MOST_DEBTORS, "debtor")])
def test_of_many_debtors_the_last_ones_are_remembered(num_others: int, first: str) -> None:
    waiting = queue()
    fill(waiting, asked("somebody", band=1))
    waiting.charge("debtor", 0, 10_000)
    for number in range(num_others):
        waiting.charge(f"other {number}", 0, 1)
    fill(waiting, asked("debtor"), asked("honest"))
    assert drained(waiting)[0].tenant == first


def test_what_is_before_a_request_is_told_in_tokens() -> None:
    waiting = queue()
    fill(
        waiting, asked("a", 300), asked("b", 5_000), asked("c", 200), asked("a", 70, band=-1),
        asked("a", 999, band=2),
    )  # fmt: skip
    # 70 of the better band, 300 of its own tenant; of b and c as much as of its own.
    assert waiting.tokens_before(asked("a", 100)) == 70 + 300 + 400 + 200
    assert waiting.tokens_before(asked("d", 50, weight=0.5)) == 70 + 100 + 100 + 100


@pytest.mark.parametrize("band", [0, 1])
def test_an_empty_queue_is_empty(band: int) -> None:
    waiting, one = queue(), asked(band=band)
    fill(waiting, one)
    waiting.remove(one)
    assert waiting.head() is None and (waiting.num_requests, waiting.num_tokens) == (0, 0)
    assert waiting.tokens_before(one) == 0


def _copy_of(other: FairQueue) -> FairQueue:
    order, copy = drained(other), queue(num_tokens=1_000)
    for waiting in (other, copy):
        fill(waiting, *order)
    return copy
