from collections.abc import Sequence as Seq

import pytest

from engine.batch import SequenceId
from engine.kvcache import prefix_cache as prefix_module
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.prefix_cache import PrefixCache
from engine.sequence import Mode, Sequence
from protocol.blocks import BlockChange, block_hashes, chain_seed
from protocol.messages import Sampling

LONG = list(range(12))


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(BlockAllocator(8, generations=[0] * 8), block_tokens=4, compat="test")


def sequence(
    cache: PrefixCache, tokens: Seq[int], *, salt: str = "", mode: Mode = Mode.LOCAL
) -> Sequence:
    return Sequence(
        id=SequenceId("s"),
        prompt=tokens,
        outputs=[],
        sampling=Sampling(seed=1, max_tokens=8),
        mode=mode,
        chain=[cache.seed(salt)],
    )


def seal(cache: PrefixCache, held: Sequence) -> None:
    for displaced in cache.seal(held):
        cache.let_go(displaced)


def computed(
    cache: PrefixCache, tokens: Seq[int], *, salt: str = "", mode: Mode = Mode.LOCAL
) -> Sequence:
    """A sequence that holds blocks for its tokens, all computed and sealed."""
    held = sequence(cache, tokens, salt=salt, mode=mode)
    matched = cache.match(held, max_tokens=len(tokens))
    num_blocks = -(-len(tokens) // cache.block_tokens)
    held.block_table = cache.take(matched, num_new=num_blocks - len(matched))
    held.num_sealed = len(matched)
    held.num_computed = len(tokens)
    seal(cache, held)
    cache.check()
    return held


def cache_it(cache: PrefixCache, tokens: Seq[int]) -> None:
    cache.give_back(computed(cache, tokens))


def num_matched(cache: PrefixCache, tokens: Seq[int], *, salt: str = "") -> int:
    return len(cache.match(sequence(cache, tokens, salt=salt), max_tokens=len(tokens)))


def test_sealed_blocks_are_found_by_the_next_sequence(cache: PrefixCache) -> None:
    cache_it(cache, LONG)
    assert num_matched(cache, [*LONG, 99]) == 3
    assert num_matched(cache, [*LONG[:9], 99, 99, 99]) == 2


def test_a_partly_filled_block_is_not_found(cache: PrefixCache) -> None:
    cache_it(cache, LONG[:7])
    assert num_matched(cache, LONG) == 1


def test_a_match_stays_below_the_tokens_asked_for(cache: PrefixCache) -> None:
    cache_it(cache, LONG)
    assert len(cache.match(sequence(cache, LONG), max_tokens=len(LONG) - 1)) == 2


def test_tenants_with_different_salts_never_meet(cache: PrefixCache) -> None:
    cache.give_back(computed(cache, LONG, salt="one"))
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
    cache.give_back(other)
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
    cache.give_back(computed(cache, LONG))
    taken = cache.take((), num_new=4)
    assert len(taken) == 4
    assert num_matched(cache, range(50, 62)) == 1
    assert num_matched(cache, LONG) == 3
    cache.check()


def test_a_shared_stem_outlives_its_branches(cache: PrefixCache) -> None:
    stem = LONG[:8]
    cache_it(cache, [*stem, 1, 1, 1, 1])
    cache_it(cache, [*stem, 2, 2, 2, 2])
    cache.take((), num_new=6)
    assert num_matched(cache, LONG) == 2


def test_a_block_in_use_is_never_evicted(cache: PrefixCache) -> None:
    held = computed(cache, LONG)
    cache.take((), num_new=5)
    assert cache.num_available == 0
    assert num_matched(cache, LONG) == len(held.block_table)


def test_the_second_of_two_equal_sequences_shares_the_blocks_of_the_first(
    cache: PrefixCache,
) -> None:
    first, second = sequence(cache, LONG), sequence(cache, LONG)
    for held in (first, second):
        held.block_table = cache.take((), num_new=3)
        held.num_computed = len(LONG)
    for held in (first, second):
        seal(cache, held)
    assert first.block_table == second.block_table
    assert cache.blocks.num_owned == 3


@pytest.mark.parametrize("mode", [Mode.LOCAL, Mode.HANDOVER])
def test_a_block_takes_the_place_of_an_equal_one_that_nobody_holds(
    cache: PrefixCache, mode: Mode
) -> None:
    """So that sealing makes nothing scarcer, and whoever reads its blocks need not move."""
    late = sequence(cache, LONG[:8], mode=mode)
    late.block_table = cache.take((), num_new=2)
    cache_it(cache, LONG[:8])
    late.num_computed = 8
    before = list(late.block_table)
    assert cache.seal(late) == []
    cache.check()
    assert late.block_table == before and not late.twins
    assert cache.take_changes() == [BlockChange(kind="stored", hashes=tuple(late.chain[1:]))]
    cache.take((), num_new=6)
    assert cache.num_available == 0
    assert num_matched(cache, LONG[:8]) == 2


def test_under_a_lease_a_sequence_keeps_its_blocks_and_holds_the_equal_ones(
    cache: PrefixCache,
) -> None:
    leased = sequence(cache, LONG[:8], mode=Mode.HANDOVER)
    leased.block_table = cache.take((), num_new=2)
    offered = list(leased.block_table)
    first = computed(cache, LONG[:8])
    leased.num_computed = 8
    seal(cache, leased)
    cache.give_back(first)
    assert leased.block_table == offered
    assert cache.num_available == 4
    cache.give_back(leased)
    cache.check()
    assert cache.num_available == 8


def test_events_tell_the_order_in_which_the_set_changed(cache: PrefixCache) -> None:
    chain = block_hashes(LONG, block_tokens=4, seed=cache.seed(""))
    cache_it(cache, LONG)
    cache.take((), num_new=7)
    assert cache.take_changes() == [
        BlockChange(kind="stored", hashes=tuple(chain)),
        BlockChange(kind="evicted", hashes=(chain[2], chain[1])),
    ]
    assert cache.take_changes() == []
