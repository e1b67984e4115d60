from collections.abc import Sequence as Seq

import pytest

from engine.kvcache import prefix_cache as prefix_module
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.prefix_cache import Entry, PrefixCache, Tokens
from protocol.blocks import BlockChange, block_hashes, chain_seed
from protocol.ids import BlockHash

LONG = list(range(12))


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(BlockAllocator(8, generations=[0] * 8), block_tokens=4, compat="test")


def spans(tokens: Seq[int]) -> Tokens:
    return lambda start, stop: list(tokens[start:stop])


def table(cache: PrefixCache, *, salt: str = "", lent: bool = False) -> BlockTable:
    return BlockTable(cache, salt=salt, lent=lent)


def filled(cache: PrefixCache, num_blocks: int, *, lent: bool = False) -> BlockTable:
    """A table of empty blocks."""
    held = table(cache, lent=lent)
    held.fill((), [True] * num_blocks, promise=0)
    return held


def seal(cache: PrefixCache, held: BlockTable, tokens: Seq[int]) -> None:
    for displaced in held.seal(spans(tokens), len(tokens), in_flight=False):
        cache.let_go(displaced)


def computed(
    cache: PrefixCache, tokens: Seq[int], *, salt: str = "", lent: bool = False
) -> BlockTable:
    """Blocks for these tokens, all computed and sealed."""
    held = table(cache, salt=salt, lent=lent)
    matched = held.match(spans(tokens), max_tokens=len(tokens))
    num_blocks = -(-len(tokens) // cache.block_tokens)
    held.fill(matched, [True] * (num_blocks - len(matched)), promise=0)
    seal(cache, held, tokens)
    cache.check()
    return held


def cache_it(cache: PrefixCache, tokens: Seq[int]) -> None:
    computed(cache, tokens).give_back()


def num_matched(cache: PrefixCache, tokens: Seq[int], *, salt: str = "") -> int:
    return len(table(cache, salt=salt).match(spans(tokens), max_tokens=len(tokens)))


def test_sealed_blocks_are_found_by_the_next_sequence(cache: PrefixCache) -> None:
    cache_it(cache, LONG)
    assert num_matched(cache, [*LONG, 99]) == 3
    assert num_matched(cache, [*LONG[:9], 99, 99, 99]) == 2


def test_a_partly_filled_block_is_not_found(cache: PrefixCache) -> None:
    cache_it(cache, LONG[:7])
    assert num_matched(cache, LONG) == 1


def test_a_match_stays_below_the_tokens_asked_for(cache: PrefixCache) -> None:
    cache_it(cache, LONG)
    assert len(table(cache).match(spans(LONG), max_tokens=len(LONG) - 1)) == 2


def test_tenants_with_different_salts_never_meet(cache: PrefixCache) -> None:
    computed(cache, LONG, salt="one").give_back()
    assert num_matched(cache, LONG, salt="two") == 0
    assert num_matched(cache, LONG, salt="one") == 3


def test_equal_hashes_of_different_tokens_are_a_miss(
    cache: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_module, "next_hash", lambda parent, tokens: parent[:15] + b"x")
    cache_it(cache, LONG[:4])
    assert num_matched(cache, [9, 9, 9, 9]) == 0
    other = computed(cache, [9, 9, 9, 9])
    assert other.num_sealed == 0
    other.give_back()
    cache.check()


def test_the_hashes_are_those_of_the_protocol(cache: PrefixCache) -> None:
    held = computed(cache, LONG)
    seed = chain_seed(compat="test")
    assert held.chain == [seed, *block_hashes(LONG, block_tokens=4, seed=seed)]


def test_the_least_recently_used_prefix_is_evicted_first_and_leaves_first(
    cache: PrefixCache,
) -> None:
    cache_it(cache, LONG)
    cache_it(cache, range(50, 62))
    assert num_matched(cache, LONG) == 3
    computed(cache, LONG).give_back()
    taken = cache.allocate_blocks(4)
    assert len(taken) == 4
    assert num_matched(cache, range(50, 62)) == 1
    assert num_matched(cache, LONG) == 3
    cache.check()


def test_a_shared_stem_outlives_its_branches(cache: PrefixCache) -> None:
    stem = LONG[:8]
    cache_it(cache, [*stem, 1, 1, 1, 1])
    cache_it(cache, [*stem, 2, 2, 2, 2])
    cache.allocate_blocks(6)
    assert num_matched(cache, LONG) == 2


def test_a_block_in_use_is_never_evicted(cache: PrefixCache) -> None:
    held = computed(cache, LONG)
    cache.allocate_blocks(5)
    assert cache.num_available == 0
    assert num_matched(cache, LONG) == len(held.blocks)


def test_the_second_of_two_equal_sequences_shares_the_blocks_of_the_first(
    cache: PrefixCache,
) -> None:
    first, second = filled(cache, 3), filled(cache, 3)
    for held in (first, second):
        seal(cache, held, LONG)
    assert first.blocks == second.blocks
    assert cache.blocks.num_owned == 3


@pytest.mark.parametrize("lent", [False, True])
def test_a_block_takes_the_place_of_an_equal_one_that_nobody_holds(
    cache: PrefixCache, lent: bool
) -> None:
    """So that sealing makes nothing scarcer, and whoever reads its blocks need not move."""
    late = filled(cache, 2, lent=lent)
    cache_it(cache, LONG[:8])
    before = list(late.blocks)
    assert late.seal(spans(LONG), 8, in_flight=False) == []
    cache.check()
    assert late.blocks == late.holds == before
    assert cache.take_changes() == [BlockChange(kind="stored", hashes=tuple(late.chain[1:]))]
    cache.allocate_blocks(6)
    assert cache.num_available == 0
    assert num_matched(cache, LONG[:8]) == 2


def test_under_a_lease_a_sequence_keeps_its_blocks_and_holds_the_equal_ones(
    cache: PrefixCache,
) -> None:
    leased = filled(cache, 2, lent=True)
    shown = list(leased.blocks)
    first = computed(cache, LONG[:8])
    seal(cache, leased, LONG[:8])
    first.give_back()
    assert leased.blocks == shown
    assert cache.num_available == 4
    leased.give_back()
    cache.check()
    assert cache.num_available == 8


def test_a_lower_tier_is_asked_before_a_block_is_evicted() -> None:
    blocks = BlockAllocator(8, generations=[0] * 8)

    class Below:
        """Notes what it is given, and that the contents are still there."""

        def __init__(self) -> None:
            self.taken: list[tuple[int, BlockHash, int]] = []

        def take_over(self, entry: Entry) -> None:
            self.taken.append((entry.block, entry.hash, blocks.generations[entry.block]))

    below = Below()
    cache = PrefixCache(blocks, block_tokens=4, compat="test", tier=below)
    held = computed(cache, LONG[:8])
    first, last = held.blocks
    chain = held.chain[1:]
    held.give_back()
    cache.allocate_blocks(6)
    assert not below.taken
    cache.allocate_blocks(2)
    assert below.taken == [(last, chain[1], 1), (first, chain[0], 1)]


def test_events_tell_the_order_in_which_the_set_changed(cache: PrefixCache) -> None:
    chain = block_hashes(LONG, block_tokens=4, seed=cache.seed(salt=""))
    cache_it(cache, LONG)
    cache.allocate_blocks(7)
    assert cache.take_changes() == [
        BlockChange(kind="stored", hashes=tuple(chain)),
        BlockChange(kind="evicted", hashes=(chain[2], chain[1])),
    ]
    assert cache.take_changes() == []
