"""Who is answered by which of several: by weight, by key, and the same whoever asks."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.models.choice import weighted_choice

KEYS = [f"session-{number}" for number in range(4_000)]
weight = st.just(0.0) | st.floats(min_value=1e-3, max_value=1e6)
weights = st.dictionaries(st.text(min_size=1), weight, min_size=1, max_size=5).filter(
    lambda of: any(of.values())
)


def test_each_has_its_part_of_all_keys() -> None:
    chosen = Counter(weighted_choice(key, {"a": 95, "b": 5}) for key in KEYS)
    assert 0.93 < chosen["a"] / len(KEYS) < 0.97


def test_moving_weight_moves_no_key_the_other_way() -> None:
    before = {key: weighted_choice(key, {"a": 95, "b": 5}) for key in KEYS}
    after = {key: weighted_choice(key, {"a": 50, "b": 50}) for key in KEYS}
    moved = {(before[key], after[key]) for key in KEYS if before[key] != after[key]}
    assert moved == {("a", "b")}


def test_whom_nobody_moves_stays_where_another_comes() -> None:
    before = {key: weighted_choice(key, {"a": 1, "b": 1}) for key in KEYS}
    after = {key: weighted_choice(key, {"a": 1, "b": 1, "c": 1}) for key in KEYS}
    assert all(after[key] in (before[key], "c") for key in KEYS)


@given(st.text(), weights)
def test_one_with_a_weight_is_chosen_in_whatever_order_they_come(
    key: str, weights: dict[str, float]
) -> None:
    chosen = weighted_choice(key, weights)
    assert weights[chosen] > 0
    assert weighted_choice(key, dict(reversed(weights.items()))) == chosen
    doubled = {name: 2 * weight for name, weight in weights.items()}
    assert weighted_choice(key, doubled) == chosen
