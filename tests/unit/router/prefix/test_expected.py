"""What is expected of holders, beside a list of all prompts that were sent."""

import random

import pytest

from protocol.blocks import packed_hashes
from protocol.ids import BlockHash
from router.prefix.expected import ExpectedBlocks
from router.prefix.table import num_hashes

SEED = BlockHash(bytes(16))


def prompt(*tokens: int) -> bytes:
    return packed_hashes(tokens, block_tokens=1, seed=SEED)


def test_a_prompt_that_comes_with_another_finds_what_both_begin_with() -> None:
    expected = ExpectedBlocks()
    expected.expect_prompt(7, prompt(1, 2, 3, 4), expires=2.0)
    assert expected.hoped_depths(prompt(1, 2, 3, 9, 9)) == {7: 3}
    assert expected.hoped_depths(prompt(1, 2)) == {7: 2}
    assert expected.hoped_depths(prompt(5)) == {}


def test_each_of_two_sent_elsewhere_is_found_as_far_as_it_goes() -> None:
    expected = ExpectedBlocks()
    expected.expect_prompt(1, prompt(1, 2, 3, 4), expires=2.0)
    expected.expect_prompt(2, prompt(1, 2, 5), expires=2.0)
    assert expected.hoped_depths(prompt(1, 2, 3, 4)) == {1: 4, 2: 2}
    assert expected.hoped_depths(prompt(1, 2, 5, 6)) == {1: 2, 2: 3}


def test_beyond_the_bound_the_oldest_are_forgotten() -> None:
    expected = ExpectedBlocks(max_blocks=5)
    expected.expect_prompt(1, prompt(1, 2, 3), expires=2.0)
    expected.expect_prompt(2, prompt(4, 5), expires=2.0)
    expected.expect_prompt(3, prompt(6), expires=2.0)
    assert (len(expected), expected.hoped_depths(prompt(1))) == (2, {})
    assert expected.hoped_depths(prompt(4)) == {2: 1}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_sent_and_expires_the_longest_common_beginning_is_found(seed: int) -> None:
    given, expected = random.Random(seed), ExpectedBlocks()
    sent: list[tuple[float, int, bytes]] = []
    for turn in range(1_500):
        now = turn / 10
        expected.drop_expired(now)
        sent = [one for one in sent if one[0] > now]
        tokens = [given.randrange(2) for _ in range(given.randrange(1, 12))]
        packed, holder = prompt(*tokens), given.randrange(4)
        assert expected.hoped_depths(packed) == _longest(sent, packed)
        if given.random() < 0.4:
            expected.expect_prompt(holder, packed, expires=now + 2.0)
            sent.append((now + 2.0, holder, packed))
    expected.drop_expired(1e9)
    assert expected.hoped_depths(prompt(0)) == {} and len(expected) == 0


def test_where_prompts_part_no_more_there_is_one_run_again() -> None:
    """Else a beginning that stays would be cut into more runs with every prompt that leaves it."""
    expected = ExpectedBlocks()
    for turn in range(200):
        expected.drop_expired(turn)
        expected.expect_prompt(1, prompt(*range(150)), expires=turn + 2.0)
        expected.expect_prompt(1, prompt(*range(turn % 149 + 1), 999), expires=turn + 2.0)
    assert expected.num_runs(prompt(*range(150))) <= 4


def _longest(sent: list[tuple[float, int, bytes]], packed: bytes) -> dict[int, int]:
    longest: dict[int, int] = {}
    for _, holder, other in sent:
        shared = 0
        while shared < min(num_hashes(packed), num_hashes(other)) and (
            packed[: 16 * (shared + 1)] == other[: 16 * (shared + 1)]
        ):
            shared += 1
        if shared:
            longest[holder] = max(longest.get(holder, 0), shared)
    return longest
