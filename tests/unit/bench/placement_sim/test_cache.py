"""What a simulated worker's prefix cache keeps, and what it gives up first."""

from collections.abc import Sequence

from bench.placement_sim.cache import PrefixCache


def cache_of(num_blocks: int | None) -> tuple[PrefixCache, list[tuple[str, list[int]]]]:
    told: list[tuple[str, list[int]]] = []

    def tell(kind: str, blocks: Sequence[int]) -> None:
        told.append((kind, list(blocks)))

    return PrefixCache(num_blocks=num_blocks, tell=tell), told


def serve(cache: PrefixCache, blocks: Sequence[int]) -> None:
    """One prompt of these blocks, from its beginning to its end."""
    depth = cache.match_prefix(blocks)
    assert cache.take_room(blocks[:depth], num_needed=len(blocks) - depth)
    cache.seal_blocks(blocks[depth:])
    cache.give_back(blocks, num_private=0)


def test_a_prefix_is_found_as_far_as_it_was_sealed() -> None:
    cache, _ = cache_of(None)
    serve(cache, [1, 2, 3])
    assert cache.match_prefix([1, 2, 3, 4]) == 3
    assert cache.match_prefix([2, 3]) == 2
    assert cache.match_prefix([9, 2, 3]) == 0


def test_leaves_are_given_up_before_what_they_follow() -> None:
    cache, told = cache_of(4)
    serve(cache, [1, 2, 3])
    serve(cache, [7, 8])
    assert ("evicted", [3]) in told
    assert cache.match_prefix([1, 2, 3]) == 2


def test_what_someone_holds_is_not_given_up() -> None:
    cache, _ = cache_of(4)
    assert cache.take_room([], num_needed=3)
    cache.seal_blocks([1, 2, 3])
    assert not cache.take_room([], num_needed=2)
    assert cache.match_prefix([1, 2, 3]) == 3
    cache.give_back([1, 2, 3], num_private=0)
    assert cache.take_room([], num_needed=2)


def test_a_refusal_holds_nothing() -> None:
    cache, _ = cache_of(2)
    serve(cache, [1])
    assert not cache.take_room([1], num_needed=2)
    assert cache.num_held == 0


def test_two_that_seal_the_same_blocks_take_their_room_once() -> None:
    cache, told = cache_of(8)
    for _ in range(2):
        assert cache.take_room([], num_needed=2)
    for _ in range(2):
        cache.seal_blocks([1, 2])
    assert cache.num_held == 2
    assert told == [("stored", [1, 2])]
    cache.give_back([1, 2], num_private=0)
    cache.give_back([1, 2], num_private=0)
    assert cache.num_held == 0
