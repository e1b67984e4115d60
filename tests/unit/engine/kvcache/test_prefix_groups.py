"""The prefix cache of models whose layers see windows: KV groups in blocks of their own."""

from collections.abc import Sequence as Seq

import pytest

from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.prefix_cache import PrefixCache, Tokens
from engine.kvcache.windows import NO_BLOCK, Window
from protocol.blocks import BlockChange, block_hashes

LONG = list(range(16))
"""Four blocks of 4."""
MIXED: tuple[Window, ...] = (None, 6)
"""Of a window of 6 a query after 16 tokens sees tokens 11 to 15: blocks 2 and 3."""


def cache_of(windows: Seq[Window], *, num_blocks: int = 24) -> PrefixCache:
    blocks = BlockAllocator(num_blocks, generations=[0] * num_blocks)
    return PrefixCache(blocks, block_tokens=4, compat="test", windows=windows)


@pytest.fixture
def mixed() -> PrefixCache:
    return cache_of(MIXED)


def spans(tokens: Seq[int]) -> Tokens:
    return lambda start, stop: list(tokens[start:stop])


def computed(cache: PrefixCache, tokens: Seq[int], *, lent: bool = False) -> BlockTable:
    """Blocks of tokens that were computed four at a time: what is still seen, and what is lent."""
    held = BlockTable(cache, salt="", lent=lent)
    matched = held.match(spans(tokens), max_tokens=len(tokens))
    num_rows = len(matched) // cache.num_groups
    promise = cache.groups.most_held(len(tokens), num_ahead=4, lends=lent)
    lacking = cache.groups.lacking(num_rows, num_tokens=len(tokens), named=lent)
    held.fill(matched, lacking, promise=promise)
    for num_computed in range(4 * num_rows + 4, len(tokens) + 1, 4):
        held.cover(num_computed - 4, num_computed)
        held.seal(spans(tokens), num_computed, in_flight=False)
        held.drop_unreachable(num_computed)
    cache.check()
    return held


def matched(cache: PrefixCache, tokens: Seq[int], *, resume_at: int = 0) -> list[int]:
    table = BlockTable(cache, salt="", lent=False)
    return table.match(spans(tokens), max_tokens=len(tokens), resume_at=resume_at)


def evict(cache: PrefixCache, *blocks: int) -> None:
    """Use all others once more; then let others take what is free, and these."""
    for block in range(cache.blocks.num_blocks):
        if cache.blocks.is_cached(block) and block not in blocks:
            cache.acquire_blocks([block])
            cache.let_go(block)
    for block in cache.allocate_blocks(cache.blocks.num_free + len(blocks)):
        cache.let_go(block)


def test_a_prefix_is_found_with_the_last_blocks_of_its_windows(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    all_of_it = held.blocks[::2]
    assert NO_BLOCK not in all_of_it
    assert held.blocks[1::2][:2] == [NO_BLOCK, NO_BLOCK]
    assert matched(mixed, [*LONG, 99]) == held.blocks


def test_blocks_that_a_window_left_behind_serve_those_who_branch_off_there(
    mixed: PrefixCache,
) -> None:
    computed(mixed, LONG).give_back()
    branch = matched(mixed, [*LONG[:8], 99, 99, 99, 99])
    assert len(branch) == 2 * 2 and NO_BLOCK not in branch


def test_a_prefix_whose_window_is_not_whole_is_found_as_far_as_one_is(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    last = held.blocks[-1]
    held.give_back()
    evict(mixed, last)
    assert len(matched(mixed, [*LONG, 99])) == 2 * 3
    mixed.check()


def test_without_the_blocks_of_a_full_group_nothing_after_them_is_found(
    mixed: PrefixCache,
) -> None:
    held = computed(mixed, LONG)
    full = held.blocks[::2]
    held.give_back()
    evict(mixed, full[3])
    evict(mixed, full[2])
    assert len(matched(mixed, [*LONG, 99])) == 2 * 2
    mixed.check()


def test_what_a_fetch_will_bring_needs_no_window_before_it(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    windowed = [block for block in held.blocks[1::2] if block != NO_BLOCK]
    full = held.blocks[::2]
    held.give_back()
    for block in windowed:
        evict(mixed, block)
    longer = [*LONG, *range(50, 66)]
    assert len(matched(mixed, longer)) < 2 * 4
    resumed = matched(mixed, longer, resume_at=len(longer))
    assert resumed == [entry for block in full for entry in (block, NO_BLOCK)]
    lacking = mixed.groups.lacking(4, num_tokens=32, named=True)
    assert lacking[::2] == [True] * 4, "all of the full group"
    assert lacking[1::2] == [False, False, True, True], "blocks 6 and 7 of the window's"


def test_with_windows_alone_only_their_last_blocks_are_needed() -> None:
    cache = cache_of((6,))
    held = computed(cache, LONG)
    assert matched(cache, [*LONG, 99]) == [NO_BLOCK, NO_BLOCK, *held.blocks[2:]]
    early = matched(cache, LONG[:8])
    held.give_back()
    for block in early:
        evict(cache, block)
    assert len(matched(cache, [*LONG, 99])) == 4
    assert matched(cache, LONG[:8]) == []


def test_the_blocks_a_window_left_first_are_evicted_first(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    assert mixed.blocks.num_cached == 2
    mixed.allocate_blocks(mixed.num_available)
    assert matched(mixed, [*LONG, 99]) == held.blocks
    assert not mixed.num_available


def test_what_is_lent_is_kept_whatever_is_computed() -> None:
    cache = cache_of((6, 3))
    leased = computed(cache, LONG, lent=True)
    shown = leased.seen_after(16)
    assert [block == NO_BLOCK for block in shown[::2]] == [True, True, False, False]
    assert [block == NO_BLOCK for block in shown[1::2]] == [True, True, True, False]
    assert tuple(leased.blocks) == shown


def test_under_a_lease_a_window_keeps_its_own_blocks_and_no_equal_ones() -> None:
    cache = cache_of((6,))
    leased = BlockTable(cache, salt="", lent=True)
    leased.fill((), [True] * 4, promise=4)
    own = list(leased.blocks)
    other = computed(cache, LONG)
    leased.seal(spans(LONG), 16, in_flight=False)
    leased.drop_unreachable(16)
    assert leased.blocks == [NO_BLOCK, NO_BLOCK, *own[2:]] and leased.holds == own[2:]
    other.give_back()
    leased.give_back()
    cache.check()
    assert cache.num_available == cache.num_spare == cache.blocks.num_blocks


def test_a_hash_is_stored_and_evicted_once_whatever_the_number_of_groups(
    mixed: PrefixCache,
) -> None:
    chain = block_hashes(LONG, block_tokens=4, seed=mixed.seed(salt=""))
    computed(mixed, LONG).give_back()
    mixed.allocate_blocks(24)
    assert mixed.take_changes() == [
        BlockChange(kind="stored", hashes=tuple(chain)),
        BlockChange(kind="evicted", hashes=tuple(reversed(chain))),
    ]


def test_a_pool_with_fewer_blocks_than_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks is 2; a token needs one in each of 3"):
        cache_of((None, 6, 6), num_blocks=2)


@pytest.mark.parametrize(
    ("windows", "is_closed"), [((None,), True), ((None, 8), True), ((8,), False), ((8, 16), False)]
)
def test_what_is_told_is_closed_unless_all_layers_have_windows(
    windows: Seq[Window], is_closed: bool
) -> None:
    assert cache_of(windows).is_prefix_closed is is_closed
