"""Leases of models whose layers see windows: only what is still seen is lent, moved and counted."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from support.eventually import eventually
from support.relay import Pool, request_kv
from support.transfer import Borrower, Lender, Outcome, Slot

from engine.kvcache.windows import NO_BLOCK, first_block
from kvtransfer.chunk import describe_pieces
from kvtransfer.endings import Landed, Lost
from kvtransfer.plan import plan
from protocol.errors import TransferError
from protocol.layout import KvLayout

NUM_BLOCKS = 40
NUM_TOKENS = 27
WINDOW = 10
LAYOUT = KvLayout(
    num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32", num_groups=2
)
"""Group 0 sees all, group 1 a window: 7 token blocks, of group 1's the last 4."""


def sized(block_tokens: int) -> KvLayout:
    return msgspec.structs.replace(LAYOUT, block_tokens=block_tokens)


def present(layout: KvLayout, *, window: int = WINDOW) -> list[int]:
    """Places of the table that an engine with this layout lends, or asks for."""
    first = first_block(NUM_TOKENS, window, block_tokens=layout.block_tokens)
    places = range(layout.num_blocks(NUM_TOKENS))
    return [place for place in places if place % 2 == 0 or place // 2 >= first]


def table_of(layout: KvLayout, *, window: int = WINDOW, start: int = 3) -> list[int]:
    lent = set(present(layout, window=window))
    return [
        start + place if place in lent else NO_BLOCK
        for place in range(layout.num_blocks(NUM_TOKENS))
    ]


@pytest.fixture(params=["memory", "shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender(layout=LAYOUT, num_blocks=NUM_BLOCKS)
    yield lender
    lender.close()


@pytest.fixture
def borrower(transport: str, request: pytest.FixtureRequest) -> Iterator[Borrower]:
    borrower = Borrower(
        layout=sized(getattr(request, "param", LAYOUT.block_tokens)), num_blocks=NUM_BLOCKS,
        transports=(transport,), allow_fallback=False,
    )  # fmt: skip
    yield borrower
    borrower.close()


def ask(borrower: Borrower, lender: Lender, places: list[int], *, window: int = WINDOW) -> Outcome:
    ticket = lender.lend(table_of(LAYOUT, window=window), num_tokens=NUM_TOKENS)
    outcome = borrower.fetch(ticket, [Slot(place, 30 - n) for n, place in enumerate(places)])
    lender.write_all(ticket)
    return outcome


def test_only_the_blocks_of_the_window_move(lender: Lender, borrower: Borrower) -> None:
    places = present(LAYOUT)
    end = ask(borrower, lender, places).end
    assert isinstance(end, Landed)
    assert end.num_blocks == 7 + 4
    assert end.num_bytes == (7 + 4) * LAYOUT.block_bytes, "not of 14 blocks"
    table = table_of(LAYOUT)
    for number, place in enumerate(places):
        assert borrower.memory.block(30 - number) == lender.memory.block(table[place])


def test_a_piece_says_which_tokens_it_holds_whatever_its_group() -> None:
    indices_S = np.array([0, 1, 2, 13], np.uint32)
    pieces_S = describe_pieces(
        plan(LAYOUT, LAYOUT), indices_S=indices_S, slots_S=indices_S, num_tokens=NUM_TOKENS
    )
    assert pieces_S["token_start"].tolist() == [0, 0, 4, 24]
    assert pieces_S["token_count"].tolist() == [4, 4, 4, 3]


def test_blocks_of_all_groups_move_as_their_tokens_are_written(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend(table_of(LAYOUT), num_tokens=NUM_TOKENS)
    outcome = borrower.fetch(ticket, [Slot(place, place) for place in present(LAYOUT)])
    lender.source.publish(ticket.lease, 18)  # four whole token blocks: one of them in the window
    eventually(lambda: lender.sent(ticket.lease) == 4 + 1)
    assert not outcome.ended
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)


def test_a_block_that_a_window_left_behind_is_refused(lender: Lender, borrower: Borrower) -> None:
    end = ask(borrower, lender, [0, 1]).end
    assert isinstance(end, Lost)
    assert isinstance(end.error, TransferError)
    assert str(end.error) == "block 1 is not lent: a window has left it behind"


def test_what_becomes_of_blocks_that_are_not_lent_does_not_matter(
    lender: Lender, borrower: Borrower
) -> None:
    """The engine frees them while it computes; block 0xFFFFFFFF is nobody's."""
    ticket = lender.lend(table_of(LAYOUT), num_tokens=NUM_TOKENS)
    behind = set(range(3, 17)) - {block for block in table_of(LAYOUT) if block != NO_BLOCK}
    for block in behind:
        lender.memory.generations[block] += 1
    outcome = borrower.fetch(ticket, [Slot(place, place) for place in present(LAYOUT)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Landed)


def test_a_lent_block_that_gets_other_contents_ends_the_lease(
    lender: Lender, borrower: Borrower
) -> None:
    ticket = lender.lend(table_of(LAYOUT), num_tokens=NUM_TOKENS)
    lender.memory.generations[table_of(LAYOUT)[-1]] += 1
    outcome = borrower.fetch(ticket, [Slot(place, place) for place in present(LAYOUT)])
    lender.write_all(ticket)
    assert isinstance(outcome.end, Lost)
    assert "a block was given to another request" in str(outcome.end.error)


def lay(layout: KvLayout, table: list[int]) -> Pool:
    """All of the request, each group's layers with numbers of their own; what the table lacks
    goes to the last block."""
    pool = Pool(layout, NUM_BLOCKS)
    for group in range(2):
        kv_LHND = request_kv(layout, NUM_TOKENS) + np.uint32(1_000_000 * group)
        blocks = [NUM_BLOCKS - 1 if b == NO_BLOCK else b for b in table[group::2]]
        pool.lay(kv_LHND, blocks)
    return pool


@pytest.mark.parametrize("borrower", [2, 4, 8], indirect=True, ids=lambda n: f"blocks of {n}")
def test_windows_arrive_in_blocks_of_another_size(lender: Lender, borrower: Borrower) -> None:
    """Of a window of 10 a fetcher with blocks of 8 wants tokens from 8 on: the source lends a
    window of 17 that begins there."""
    assert isinstance(borrower.layout, KvLayout)
    lender.memory.blocks[:] = lay(LAYOUT, table_of(LAYOUT, window=17)).data.tobytes()
    places = present(borrower.layout)
    end = ask(borrower, lender, places, window=17).end
    assert isinstance(end, Landed)
    table = [NO_BLOCK] * borrower.layout.num_blocks(NUM_TOKENS)
    for number, place in enumerate(places):
        table[place] = 30 - number
    expected = lay(borrower.layout, table)
    for block in [block for block in table if block != NO_BLOCK]:
        start = block * borrower.layout.block_bytes
        there = expected.data[start : start + borrower.layout.block_bytes]
        assert borrower.memory.block(block) == there.tobytes()


@pytest.mark.parametrize("borrower", [8], indirect=True, ids=lambda n: f"blocks of {n}")
def test_larger_blocks_that_begin_before_the_lent_window_are_refused(
    lender: Lender, borrower: Borrower
) -> None:
    """Tokens 12 to 26 are lent, the fetcher's block has tokens 8 to 15."""
    assert first_block(NUM_TOKENS, 12, block_tokens=4) == 3
    end = ask(borrower, lender, [0, 2, 3], window=12).end
    assert isinstance(end, Lost)
    assert str(end.error) == "block 3 is not lent: a window has left it behind"
