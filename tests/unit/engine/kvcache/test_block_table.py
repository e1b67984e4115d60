from collections.abc import Sequence

from support.block_books import cache_of

from engine.kvcache.block_table import BlockTable
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import NO_BLOCK

TOKENS = list(range(100, 112))


def span(start: int, stop: int) -> list[int]:
    return TOKENS[start:stop]


def filled(cache: PrefixCache, lacking: Sequence[bool], *, promise: int = 0) -> BlockTable:
    table = BlockTable(cache, salt="", lent=False)
    table.fill((), lacking, promise=promise)
    return table


def test_a_new_row_makes_room_for_one_block_of_tokens() -> None:
    cache = cache_of(4)
    table = filled(cache, [True] * 2)
    assert (table.num_slots, len(table.blocks)) == (8, 2)
    assert table.add_row(promise=0)
    assert (table.num_slots, len(table.blocks), cache.num_spare) == (12, 3, 1)


def test_there_is_no_new_row_of_blocks_that_others_were_promised() -> None:
    cache = cache_of(5, windows=(None, 4))
    one = filled(cache, [True, False], promise=1)
    other = filled(cache, [True, False], promise=2)
    assert cache.num_spare == 0
    assert not one.add_row(promise=1)
    assert one.num_slots == 4
    other.give_back()
    assert one.add_row(promise=1)
    cache.check()


def test_blocks_of_windows_come_when_their_tokens_are_computed_and_go_when_unseen() -> None:
    """A window of one token: nothing before the block computed is seen."""
    cache = cache_of(8, windows=(None, 1))
    table = filled(cache, [True, False] * 3, promise=2)
    assert table.blocks[1::2] == [NO_BLOCK] * 3
    table.cover(0, 8)
    assert NO_BLOCK not in table.blocks[:4] and table.blocks[5] == NO_BLOCK
    assert table.keeps_promise
    table.drop_unreachable(8)
    assert table.blocks[1::2] == [NO_BLOCK] * 3 and NO_BLOCK not in table.blocks[::2]


def test_a_table_holds_more_than_it_was_promised_until_its_windows_move_on() -> None:
    table = filled(cache_of(8, windows=(None, 1)), [True, False] * 2, promise=2)
    table.cover(0, 8)
    table.promise(1)
    assert not table.keeps_promise
    table.drop_unreachable(4)
    assert table.keeps_promise


def test_what_is_seen_after_so_many_tokens_leaves_out_what_windows_passed() -> None:
    table = filled(cache_of(8, windows=(None, 1)), [True] * 4, promise=2)
    first, passed, second, seen = table.blocks
    assert table.seen_after(4) == (first, NO_BLOCK, second, seen)
    assert passed in table.holds


def test_only_whole_computed_blocks_are_sealed() -> None:
    cache = cache_of(4)
    table = filled(cache, [True] * 3)
    assert table.seal(span, 7, in_flight=False) == []
    assert (table.num_sealed, len(cache.stored_hashes)) == (1, 1)


def test_a_table_shares_the_held_block_that_equals_its_own_and_names_its_own() -> None:
    cache = cache_of(4)
    first, second = filled(cache, [True]), filled(cache, [True])
    (own,) = second.blocks
    first.seal(span, 4, in_flight=False)
    assert second.seal(span, 4, in_flight=True) == [own]
    assert second.blocks == first.blocks
    cache.let_go(own)
    cache.check()


def test_a_table_given_back_holds_nothing_and_what_it_sealed_is_cached() -> None:
    cache = cache_of(4, windows=(None, 4))
    table = filled(cache, [True] * 4, promise=2)
    table.seal(span, 4, in_flight=False)
    table.give_back()
    assert (table.holds, table.num_slots, table.num_sealed, table.num_promised) == ([], 0, 0, 0)
    assert (cache.blocks.num_cached, cache.blocks.num_free) == (2, 2)
    assert cache.num_spare == 4
