"""Deficit round robin of one band."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.admission.band import QUANTUM_TOKENS, Band
from router.admission.queued_request import QueuedRequest


def asked(tenant: str, num_tokens: int = 100, *, weight: float = 1.0) -> QueuedRequest:
    return QueuedRequest(
        tenant=tenant, weight=weight, band=0, num_prompt_tokens=num_tokens, num_output_tokens=0,
        ends_at=1e9,
    )  # fmt: skip


def served(band: Band, num: int) -> list[QueuedRequest]:
    order = []
    for _ in range(num):
        order.append(band.head())
        band.remove(order[-1], pays=True)
    return order


def test_of_one_tenant_the_first_is_first() -> None:
    band, requests = Band(), [asked("a", size) for size in (900, 1, 5_000)]
    for one in requests:
        band.add(one)
    assert served(band, 3) == requests
    assert not band and band.num_tokens == 0


def test_whose_turn_it_is_stays_so_while_others_come() -> None:
    band, first = Band(), asked("b")
    band.add(first)
    assert band.head() is first
    band.add(asked("a"))
    assert band.head() is first


def test_a_tenant_with_short_requests_is_not_behind_one_with_long_ones() -> None:
    band = Band()
    for _ in range(20):
        band.add(asked("long", 10_000))
    for _ in range(400):
        band.add(asked("short", 100))
    spent = Counter[str]()
    for one in served(band, 205):
        spent[one.tenant] += one.num_tokens
    assert abs(spent["long"] - spent["short"]) <= 10_000 + QUANTUM_TOKENS


def test_twice_the_weight_is_twice_the_tokens() -> None:
    band = Band()
    for _ in range(300):
        band.add(asked("light", 300))
        band.add(asked("heavy", 300, weight=2.0))
    num = Counter(one.tenant for one in served(band, 300))
    assert abs(num["heavy"] - 2 * num["light"]) <= 6


def test_who_owes_waits_until_others_had_as_much() -> None:
    band = Band()
    band.add(asked("debtor", 512), deficit=-5 * 512.0)
    for _ in range(10):
        band.add(asked("other", 512))
    order = [one.tenant for one in served(band, 11)]
    assert order.index("debtor") in (4, 5, 6)


_sizes = st.lists(st.integers(1, 4_000), min_size=1, max_size=30)


@given(st.dictionaries(st.sampled_from("abcd"), _sizes, min_size=2), st.data())
def test_while_two_wait_neither_gets_ahead_by_more_than_a_round_and_a_request(
    sizes: dict[str, list[int]], data: st.DataObject
) -> None:
    weights = {tenant: data.draw(st.sampled_from([0.5, 1.0, 3.0])) for tenant in sizes}
    band = Band()
    for tenant, of_tenant in sizes.items():
        for size in of_tenant:
            band.add(asked(tenant, size, weight=weights[tenant]))
    spent, left = Counter[str](), {tenant: len(of) for tenant, of in sizes.items()}
    for _ in range(sum(left.values())):
        one = band.head()
        band.remove(one, pays=True)
        spent[one.tenant] += one.num_tokens
        left[one.tenant] -= 1
        if min(left.values()) == 0:
            break
        normal = [spent[tenant] / weights[tenant] for tenant in sizes]
        largest = max(max(of) / weights[tenant] for tenant, of in sizes.items())
        assert max(normal) - min(normal) <= 2 * (QUANTUM_TOKENS + largest)
