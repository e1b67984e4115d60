from itertools import product

import pytest

from engine.kvcache.windows import KvGroups, first_block


@pytest.mark.parametrize(("window", "size", "num_ahead"), product((1, 2, 6, 9, 16), (1, 4), (1, 5)))
def test_most_held_is_what_is_held_at_some_token_and_never_exceeded(
    window: int, size: int, num_ahead: int
) -> None:
    groups = KvGroups(windows=(None, window), block_tokens=size)
    held = [
        groups.num_rows(computed + num_ahead) - first_block(computed, window, block_tokens=size)
        for computed in range(100)
    ]
    assert max(held) == groups.most_held(200, num_ahead=num_ahead)
    assert groups.most_held(size, num_ahead=num_ahead) == 1, "a sequence of one block"


def test_who_lends_holds_what_is_seen_after_the_last_token_from_the_beginning() -> None:
    groups = KvGroups(windows=(6,), block_tokens=4)
    assert groups.most_held(200, num_ahead=1, lends=True) == 3 + 2
    assert groups.most_held(203, num_ahead=1, lends=True) == 3 + 3
    assert groups.most_held(16, num_ahead=1, lends=True) == 4


def test_at_admission_windows_lack_what_a_lease_or_a_fetch_names() -> None:
    groups = KvGroups(windows=(None, 6), block_tokens=4)
    named = groups.lacking(1, num_tokens=15, named=True)
    assert (named[::2], named[1::2]) == ([True] * 3, [True] * 3)
    longer = groups.lacking(1, num_tokens=24, named=True)
    assert (longer[::2], longer[1::2]) == ([True] * 5, [False, False, False, True, True])
    own = groups.lacking(1, num_tokens=15, named=False)
    assert (own[::2], own[1::2]) == ([True] * 3, [False] * 3)
