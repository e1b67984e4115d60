import pytest

from engine.kvcache.allocator import BlockAllocator, check_books


@pytest.fixture
def blocks() -> BlockAllocator:
    return BlockAllocator(4, generations=[0] * 4)


def test_a_fresh_block_has_a_new_generation(blocks: BlockAllocator) -> None:
    first = blocks.allocate()
    blocks.release(first)
    others = [blocks.allocate() for _ in range(4)]
    assert first in others
    assert blocks.generations[first] == 2


def test_sharing_a_cached_block_keeps_its_generation(blocks: BlockAllocator) -> None:
    block = blocks.allocate()
    blocks.keep(block)
    assert blocks.release(block)
    blocks.acquire(block)
    assert blocks.generations[block] == 1


def test_a_shared_block_is_free_only_when_nobody_holds_it(blocks: BlockAllocator) -> None:
    block = blocks.allocate()
    blocks.acquire(block)
    blocks.release(block)
    assert blocks.num_owned == 1
    blocks.release(block)
    assert blocks.num_free == 4


def test_a_kept_block_is_cached_until_it_is_forgotten(blocks: BlockAllocator) -> None:
    block = blocks.allocate()
    blocks.keep(block)
    blocks.release(block)
    assert (blocks.num_free, blocks.num_cached, blocks.num_owned) == (3, 1, 0)
    blocks.forget(block)
    assert (blocks.num_free, blocks.num_cached, blocks.num_owned) == (4, 0, 0)


def test_a_block_forgotten_while_held_becomes_free_when_given_back(blocks: BlockAllocator) -> None:
    block = blocks.allocate()
    blocks.keep(block)
    blocks.forget(block)
    assert blocks.num_owned == 1
    assert not blocks.release(block)
    assert blocks.num_free == 4


def test_giving_back_what_nobody_holds_is_a_bug(blocks: BlockAllocator) -> None:
    block = blocks.allocate()
    blocks.release(block)
    with pytest.raises(AssertionError, match="nobody holds it"):
        blocks.release(block)


def test_a_free_block_cannot_be_shared(blocks: BlockAllocator) -> None:
    with pytest.raises(AssertionError, match="cannot be shared"):
        blocks.acquire(0)


def test_free_blocks_are_reused_oldest_first(blocks: BlockAllocator) -> None:
    """So a late reader of a freed block has as long as possible to see the old contents."""
    taken = [blocks.allocate() for _ in range(3)]
    blocks.release(taken[1])
    assert blocks.allocate() == 3
    assert blocks.allocate() == taken[1]


def test_a_pool_without_blocks_or_generations_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks is 0"):
        BlockAllocator(0, generations=[])
    with pytest.raises(ValueError, match="3 generations for 4 blocks"):
        BlockAllocator(4, generations=[0] * 3)


def test_the_check_finds_books_that_do_not_agree(blocks: BlockAllocator) -> None:
    blocks.num_cached += 1
    with pytest.raises(AssertionError, match="miscounted"):
        blocks.check()


def test_the_check_finds_a_block_that_is_free_twice() -> None:
    with pytest.raises(AssertionError, match="free twice"):
        check_books(free=[0, 1, 0], refs=[0, 0], kept=[False] * 2, num_cached=0)


def test_the_check_finds_a_block_that_is_free_and_held_or_nowhere() -> None:
    with pytest.raises(AssertionError, match="held or kept"):
        check_books(free=[0, 1], refs=[1, 0], kept=[False] * 2, num_cached=0)
    with pytest.raises(AssertionError, match="a block is lost"):
        check_books(free=[1], refs=[0, 0], kept=[False] * 2, num_cached=0)
