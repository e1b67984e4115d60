"""Cached blocks lent to peers: the most first that may be spared, until the loan ends."""

import pytest

from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.loans import LOAN_SHARE, MAX_LOANS, LoanId, Loans
from engine.kvcache.prefix_cache import PrefixCache
from protocol.blocks import block_hashes

SIZE = 4
NUM_BLOCKS = 32
TOKENS = list(range(100, 100 + SIZE * 10))


@pytest.fixture
def cache() -> PrefixCache:
    blocks = BlockAllocator(NUM_BLOCKS, generations=[0] * NUM_BLOCKS)
    return PrefixCache(blocks, block_tokens=SIZE, compat="test")


def fill(cache: PrefixCache, num_blocks: int, *, salt: str = "") -> list[int]:
    """The blocks of so much of TOKENS, cached and held by nobody."""
    table = BlockTable(cache, salt=salt, lent=False)
    tokens = TOKENS[: num_blocks * SIZE]
    table.fill([], [True] * num_blocks, promise=0)
    table.seal(lambda start, stop: tokens[start:stop], len(tokens), in_flight=False)
    blocks = list(table.blocks)
    table.give_back()
    return blocks


def lend(cache: PrefixCache, loans: Loans, number: int, tokens: list[int]) -> tuple[int, ...]:
    seed = cache.seed(salt="")
    lent = loans.lend(LoanId(number), seed=seed, token_ids=tokens)
    chain = [seed, *block_hashes(tokens, block_tokens=SIZE, seed=seed)]
    assert lent.last == chain[len(lent.block_ids)]
    return lent.block_ids


def test_the_cached_beginning_is_lent_and_held(cache: PrefixCache) -> None:
    loans, cached = Loans(cache), fill(cache, 5)
    lent = lend(cache, loans, 1, [*TOKENS[: 3 * SIZE], *[7] * SIZE])
    assert list(lent) == cached[:3] == loans.blocks
    assert [cache.blocks.refs(block) for block in lent] == [1, 1, 1]
    taken = cache.allocate_blocks(cache.num_available)
    assert not set(taken) & set(lent), "a block on loan was given to another"
    loans.end(LoanId(1))
    loans.end(LoanId(1))
    assert loans.blocks == [] and cache.num_available == 3
    cache.check()


@pytest.mark.parametrize(
    "tokens", [[], TOKENS[: SIZE - 1], [7] * SIZE, [*TOKENS[: SIZE - 1], 7]], ids=str
)
def test_what_is_not_cached_is_not_lent(cache: PrefixCache, tokens: list[int]) -> None:
    fill(cache, 2)
    assert lend(cache, Loans(cache), 1, tokens) == ()


def test_another_tenants_blocks_are_not_found(cache: PrefixCache) -> None:
    fill(cache, 3, salt="tenant")
    assert lend(cache, Loans(cache), 1, TOKENS) == ()


def test_no_more_than_a_share_of_the_pool_is_lent(cache: PrefixCache) -> None:
    """To all peers together: the source has requests of its own."""
    loans, most = Loans(cache), NUM_BLOCKS // LOAN_SHARE
    fill(cache, 10)
    assert len(lend(cache, loans, 1, TOKENS[: 6 * SIZE])) == 6
    assert len(lend(cache, loans, 2, TOKENS)) == most - 6
    assert lend(cache, loans, 3, TOKENS) == ()
    loans.end(LoanId(1))
    assert len(lend(cache, loans, 4, TOKENS)) == 6


def test_what_was_promised_to_requests_here_is_not_lent(cache: PrefixCache) -> None:
    loans, cached = Loans(cache), fill(cache, 5)
    cache.promises.num_promised = cache.num_available - 2
    assert list(lend(cache, loans, 1, TOKENS)) == cached[:2]
    assert cache.num_spare == 0


def test_the_number_of_loans_is_bounded() -> None:
    many = 2 * LOAN_SHARE * MAX_LOANS
    blocks = BlockAllocator(many, generations=[0] * many)
    cache = PrefixCache(blocks, block_tokens=SIZE, compat="test")
    loans, cached = Loans(cache), fill(cache, 1)
    lent = [lend(cache, loans, number, TOKENS) for number in range(MAX_LOANS + 2)]
    assert lent == [tuple(cached)] * MAX_LOANS + [(), ()]


def test_a_spare_block_is_held_until_its_loan_ends(cache: PrefixCache) -> None:
    loans = Loans(cache)
    block = loans.hold_spare(LoanId(-1))
    assert loans.blocks == [block] and cache.num_available == NUM_BLOCKS - 1
    loans.end(LoanId(-1))
    assert loans.blocks == [] and cache.num_available == NUM_BLOCKS
    cache.check()


def test_no_spare_block_is_taken_from_those_that_were_promised(cache: PrefixCache) -> None:
    loans = Loans(cache)
    held = cache.allocate_blocks(NUM_BLOCKS)
    assert loans.hold_spare(LoanId(-1)) is None
    cache.let_go(held.pop())
    assert loans.hold_spare(LoanId(-2)) is not None
