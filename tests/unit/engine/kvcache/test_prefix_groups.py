"""The prefix cache of models whose layers see windows: KV groups in blocks of their own."""

from collections.abc import Sequence as Seq

import pytest

from engine.batch import SequenceId
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import NO_BLOCK, Window
from engine.sequence import Mode, Sequence
from protocol.blocks import BlockChange, block_hashes
from protocol.messages import Sampling

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


def sequence(cache: PrefixCache, tokens: Seq[int], *, mode: Mode = Mode.LOCAL) -> Sequence:
    return Sequence(
        id=SequenceId("s"), prompt=tokens, outputs=[], sampling=Sampling(seed=1, max_tokens=8),
        mode=mode, chain=[cache.seed("")],
    )  # fmt: skip


def computed(cache: PrefixCache, tokens: Seq[int], *, mode: Mode = Mode.LOCAL) -> Sequence:
    """A sequence that has computed its tokens four at a time, and holds what it still sees."""
    held = sequence(cache, tokens, mode=mode)
    matched = cache.match(held, max_tokens=len(tokens))
    held.num_sealed = len(matched) // cache.num_groups
    cache.promise(held, cache.reach.most_held(len(tokens), num_ahead=4, lends=held.leases))
    lacking = cache.reach.lacking(held.num_sealed, num_tokens=len(tokens), named=held.leases)
    cache.take_table(held, matched, lacking)
    held.lease_held, held.num_lent_tokens = held.leases, len(tokens) if held.leases else 0
    for num_computed in range(4 * held.num_sealed + 4, len(tokens) + 1, 4):
        cache.extend(held, held.num_computed, num_computed)
        held.num_computed = num_computed
        cache.seal(held)
        cache.drop_unreachable(held)
    cache.check()
    return held


def matched(cache: PrefixCache, tokens: Seq[int], *, resume_at: int = 0) -> list[int]:
    return cache.match(sequence(cache, tokens), max_tokens=len(tokens), resume_at=resume_at)


def evict(cache: PrefixCache, *blocks: int) -> None:
    """Let others take what is free and then these, which are the least recently used."""
    for block in blocks:
        cache._idle.move_to_end(block, last=False)
    for block in cache.take((), num_new=cache.blocks.num_free + len(blocks)):
        cache.let_go(block)


def test_a_prefix_is_found_with_the_last_blocks_of_its_windows(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    all_of_it = held.block_table[::2]
    assert NO_BLOCK not in all_of_it
    assert held.block_table[1::2][:2] == [NO_BLOCK, NO_BLOCK]
    assert matched(mixed, [*LONG, 99]) == held.block_table


def test_blocks_that_a_window_left_behind_serve_those_who_branch_off_there(
    mixed: PrefixCache,
) -> None:
    mixed.give_back(computed(mixed, LONG))
    branch = matched(mixed, [*LONG[:8], 99, 99, 99, 99])
    assert len(branch) == 2 * 2 and NO_BLOCK not in branch


def test_a_prefix_whose_window_is_not_whole_is_found_as_far_as_one_is(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    last = held.block_table[-1]
    mixed.give_back(held)
    evict(mixed, last)
    assert len(matched(mixed, [*LONG, 99])) == 2 * 3
    mixed.check()


def test_without_the_blocks_of_a_full_group_nothing_after_them_is_found(
    mixed: PrefixCache,
) -> None:
    held = computed(mixed, LONG)
    full = held.block_table[::2]
    mixed.give_back(held)
    evict(mixed, full[3])
    evict(mixed, full[2])
    assert len(matched(mixed, [*LONG, 99])) == 2 * 2
    mixed.check()


def test_what_a_fetch_will_bring_needs_no_window_before_it(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    windowed = [block for block in held.block_table[1::2] if block != NO_BLOCK]
    full = held.block_table[::2]
    mixed.give_back(held)
    for block in windowed:
        evict(mixed, block)
    longer = [*LONG, *range(50, 66)]
    assert len(matched(mixed, longer)) < 2 * 4
    resumed = matched(mixed, longer, resume_at=len(longer))
    assert resumed == [entry for block in full for entry in (block, NO_BLOCK)]
    lacking = mixed.reach.lacking(4, num_tokens=32, named=True)
    assert lacking[::2] == [True] * 4, "all of the full group"
    assert lacking[1::2] == [False, False, True, True], "blocks 6 and 7 of the window's"


def test_with_windows_alone_only_their_last_blocks_are_needed() -> None:
    cache = cache_of((6,))
    held = computed(cache, LONG)
    assert matched(cache, [*LONG, 99]) == [NO_BLOCK, NO_BLOCK, *held.block_table[2:]]
    early = matched(cache, LONG[:8])
    cache.give_back(held)
    for block in early:
        evict(cache, block)
    assert len(matched(cache, [*LONG, 99])) == 4
    assert matched(cache, LONG[:8]) == []


def test_the_blocks_a_window_left_first_are_evicted_first(mixed: PrefixCache) -> None:
    held = computed(mixed, LONG)
    assert mixed.blocks.num_cached == 2
    mixed.take((), num_new=mixed.num_available)
    assert matched(mixed, [*LONG, 99]) == held.block_table
    assert not mixed.num_available


def test_what_is_lent_is_kept_whatever_is_computed() -> None:
    cache = cache_of((6, 3))
    leased = computed(cache, LONG, mode=Mode.HANDOVER)
    offered = cache.offered(leased)
    assert [block == NO_BLOCK for block in offered[::2]] == [True, True, False, False]
    assert [block == NO_BLOCK for block in offered[1::2]] == [True, True, True, False]
    assert tuple(leased.block_table) == offered


def test_under_a_lease_a_window_keeps_its_own_blocks_and_no_equal_ones() -> None:
    cache = cache_of((6,))
    leased = sequence(cache, LONG, mode=Mode.HANDOVER)
    cache.promise(leased, 4)
    cache.take_table(leased, (), [True] * 4)
    leased.lease_held, leased.num_lent_tokens = True, 16
    own = list(leased.block_table)
    other = computed(cache, LONG)
    leased.num_computed = 16
    cache.seal(leased)
    cache.drop_unreachable(leased)
    assert leased.block_table == [NO_BLOCK, NO_BLOCK, *own[2:]] and not leased.twins
    cache.give_back(other)
    cache.give_back(leased)
    cache.check()
    assert cache.num_available == cache.num_spare == cache.blocks.num_blocks


def test_a_hash_is_stored_and_evicted_once_whatever_the_number_of_groups(
    mixed: PrefixCache,
) -> None:
    chain = block_hashes(LONG, block_tokens=4, seed=mixed.seed(""))
    mixed.give_back(computed(mixed, LONG))
    mixed.take((), num_new=24)
    assert mixed.take_changes() == [
        BlockChange(kind="stored", hashes=tuple(chain)),
        BlockChange(kind="evicted", hashes=tuple(reversed(chain))),
    ]


def test_a_pool_with_fewer_blocks_than_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks is 2; a token needs one in each of 3"):
        cache_of((None, 6, 6), num_blocks=2)
