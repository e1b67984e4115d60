"""The table in C beside its twin, block by block."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from router.prefix.c_table import CTable
from router.prefix.dict_table import DictTable
from router.prefix.native.library import kernels
from router.prefix.table import NOBODY, HolderTable, Slots


def c_table(
    *, max_blocks: int = 4096, max_sets: int | None = None, segment_blocks: int = 12_288
) -> CTable:
    library = kernels()
    if library is None:
        pytest.skip("no C compiler")
    return CTable(library, max_blocks=max_blocks, max_sets=max_sets, segment_blocks=segment_blocks)


def blocks(num: int, *, seed: int) -> list[bytes]:
    given = random.Random(seed)
    return [given.randbytes(16) for _ in range(num)]


def holders(table: HolderTable, block: bytes, slots: Sequence[int]) -> list[int]:
    asked = np.array(slots, np.uint32)
    held = table.walk_chain(block, asked, None)
    return [slot for slot, depth in zip(slots, held.tolist(), strict=True) if depth]


@pytest.mark.parametrize("segment_blocks", [8, 64, 12_288])
@pytest.mark.parametrize("slots", [(0, 1, 2), range(40), (3, 511, 512, 700, 1_500)])
def test_both_hold_the_same_whatever_is_stored_evicted_and_swept(
    segment_blocks: int, slots: Sequence[int]
) -> None:
    given = random.Random(1)
    tables = (c_table(segment_blocks=segment_blocks), DictTable(max_blocks=4096))
    known = blocks(2_500, seed=2)
    for table in tables:
        table.reserve_slots(max(slots) + 1)
    for _ in range(400):
        slot, start = given.choice(slots), given.randrange(len(known))
        packed = b"".join(known[start : start + given.randrange(200)])
        is_stored = given.random() < 0.55
        for table in tables:
            (table.store_blocks if is_stored else table.evict_blocks)(slot, packed)
    one, other = tables
    _same(one, other, known, slots)
    gone = given.sample(list(slots), len(slots) // 2)
    for table in tables:
        table.begin_sweep(gone)
        while not table.sweep_some():
            pass
    _same(one, other, known, slots)
    assert not any(holders(one, block, gone) for block in known)


def _same(one: HolderTable, other: HolderTable, known: list[bytes], slots: Sequence[int]) -> None:
    assert one.num_blocks == other.num_blocks
    for block in known:
        assert holders(one, block, slots) == holders(other, block, slots)


@pytest.mark.parametrize("hoped", [None, [0, 3, 9, 0, 7]])
def test_a_walk_tells_each_one_asked_for_its_own_depth(hoped: list[int] | None) -> None:
    chain = blocks(8, seed=3)
    for table in (c_table(), DictTable(max_blocks=4096)):
        table.reserve_slots(600)
        table.store_blocks(599, b"".join(chain[:5]))
        table.store_blocks(0, b"".join(chain[2:6]))
        table.store_blocks(7, b"".join(chain))
        asked = np.array([599, 0, 3, NOBODY, 7], np.uint32)
        given = None if hoped is None else np.array(hoped, np.uint32)
        depths = table.walk_chain(b"".join(chain), asked, given).tolist()
        assert depths == ([5, 0, 0, 0, 8] if hoped is None else [5, 6, 8, 0, 8])


@pytest.mark.parametrize(
    ("num_slots", "num_blocks"), [(1, 2), (3, 40), (70, 40), (70, 700), (1_100, 90)]
)
def test_slots_that_are_closed_are_told_the_depths_that_a_walk_tells(
    num_slots: int, num_blocks: int
) -> None:
    """Among others that are not, whatever is hoped, of chains that have a beginning in common."""
    given = random.Random(num_slots * num_blocks)
    tables = (c_table(), DictTable(max_blocks=4096))
    stem = blocks(num_blocks, seed=10)
    chains = [stem[: given.randrange(num_blocks)] + blocks(num_blocks, seed=n) for n in (11, 12)]
    closed = [given.random() < 0.7 for _ in range(num_slots)]
    for table in tables:
        table.reserve_slots(num_slots)
    for slot in range(num_slots):
        chain = given.choice(chains)
        stop = given.randrange(len(chain) + 1)
        start = 0 if closed[slot] else given.randrange(stop + 1)
        for table in tables:
            table.store_blocks(slot, b"".join(chain[start:stop]))
    for chain in (*chains, stem, blocks(3, seed=13), []):
        asked = np.array(given.sample(range(num_slots), num_slots), np.uint32)
        asked[given.random() < 0.5 :: 7] = NOBODY
        hoped = np.array([given.choice((0, 0, given.randrange(99))) for _ in asked], np.uint32)
        for hopes in (None, hoped):
            walked, *others = (
                _walk(table, b"".join(chain), asked, hopes, closed=flags)
                for table in tables
                for flags in ([False] * num_slots, closed)
            )
            assert all(depths == walked for depths in others)


def _walk(
    table: HolderTable, packed: bytes, asked: Slots, hoped: Slots | None, *, closed: list[bool]
) -> list[int]:
    for slot, is_closed in enumerate(closed):
        table.set_closed(slot, is_closed)
    depths: list[int] = table.walk_chain(packed, asked, hoped).tolist()
    return depths


def test_sets_that_nobody_refers_to_any_more_make_room_for_others() -> None:
    """Numbers of sets are given again, and what was remembered of the old ones is not believed."""
    table, twin = c_table(max_sets=24), DictTable(max_blocks=4096)
    given, known = random.Random(4), blocks(8, seed=5)
    table.reserve_slots(8)
    for _ in range(10_000):
        block, slot = given.choice(known), given.randrange(6)
        if given.random() < 0.5:
            assert table.store_blocks(slot, block) == twin.store_blocks(slot, block) == 0
        else:
            table.evict_blocks(slot, block)
            twin.evict_blocks(slot, block)
        assert holders(table, block, range(8)) == holders(twin, block, range(8))
    assert (table.num_lost, table.num_sets <= 8) == (0, True)


def test_a_holder_there_is_no_set_for_is_refused_and_the_others_stay() -> None:
    table, known = c_table(max_sets=1), blocks(2, seed=6)
    for slot in (0, 1):
        assert table.store_blocks(slot, known[0]) == 0
    table.store_blocks(0, known[1])
    assert table.store_blocks(2, known[1]) == 1
    assert (holders(table, known[0], range(3)), holders(table, known[1], range(3))) == ([0, 1], [0])


def test_a_set_that_cannot_shrink_is_forgotten_not_told_wrongly() -> None:
    """Two blocks of three holders: one loses a holder, and there is no second set."""
    table, known = c_table(max_sets=2), blocks(2, seed=7)
    for slot in (0, 1, 2):
        table.store_blocks(slot, known[0])
        table.store_blocks(slot, known[1])
    table.store_blocks(3, blocks(1, seed=8)[0])
    table.store_blocks(4, blocks(1, seed=8)[0])
    table.evict_blocks(1, known[0])
    assert table.num_lost == 1
    assert (holders(table, known[0], range(5)), holders(table, known[1], range(5))) == (
        [],
        [0, 1, 2],
    )


def test_a_table_takes_as_many_blocks_as_it_was_made_for() -> None:
    table = c_table(max_blocks=50_000, segment_blocks=1_000)
    packed = b"".join(blocks(50_001, seed=9))
    assert table.store_blocks(0, packed) == 1
    assert table.num_blocks == 50_000
