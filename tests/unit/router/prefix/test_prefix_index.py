from collections.abc import Sequence

import pytest

from protocol.blocks import ChangeKind
from protocol.ids import BlockHash, Epoch, WorkerId
from router.prefix.dict_table import DictTable
from router.prefix.holding import EARLY_EVENTS, EARLY_WAIT_S
from router.prefix.prefix_index import SPECULATIVE_TTL_S, PrefixIndex
from router.prefix.state import IndexState

A, B = WorkerId("a"), WorkerId("b")
ONE, TWO = Epoch(1), Epoch(2)
CHAIN = [BlockHash(bytes([n]) * 16) for n in range(5)]


class Index(PrefixIndex):
    """Asked in hashes and names of workers."""

    def apply(
        self,
        worker: WorkerId,
        epoch: Epoch,
        *,
        sequence: int,
        kind: ChangeKind,
        hashes: Sequence[BlockHash] = (),
        now: float = 0.0,
    ) -> IndexState | None:
        packed = b"".join(hashes)
        return self.apply_event(worker, epoch, sequence=sequence, kind=kind, packed=packed, now=now)

    def load(
        self, worker: WorkerId, epoch: Epoch, *, sequence: int, hashes: Sequence[BlockHash]
    ) -> bool:
        return self.load_snapshot(worker, epoch, sequence=sequence, packed=b"".join(hashes))

    def found(self, hashes: Sequence[BlockHash], *, now: float) -> dict[WorkerId, int]:
        depths = self.depths(b"".join(hashes), now=now)
        slots = {worker: self.slot_of(worker) for worker in self.states}
        return {worker: int(depths[slot]) for worker, slot in slots.items() if slot is not None}

    def swept(self) -> int:
        """Blocks left once those that nobody holds are gone."""
        while self.is_dirty:
            self.sweep_some()
        return len(self)


def index(*workers: WorkerId, max_blocks: int = 1024) -> Index:
    """Follows epoch 1 of each, exact and empty at sequence 0."""
    made = Index(max_blocks=max_blocks)
    for worker in workers:
        made.follow_worker(worker, ONE)
        assert made.load(worker, ONE, sequence=0, hashes=())
    return made


def test_depth_is_the_number_of_leading_blocks_each_worker_holds() -> None:
    made = index(A, B)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN[:3])
    made.apply(B, ONE, sequence=1, kind="stored", hashes=CHAIN)
    assert made.found(CHAIN, now=0) == {A: 3, B: 5}


def test_a_block_behind_a_hole_does_not_count() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=[CHAIN[0], CHAIN[2]])
    assert made.found(CHAIN, now=0) == {A: 1}


def test_evicted_and_cleared_blocks_are_forgotten_for_that_worker_alone() -> None:
    made = index(A, B)
    for worker in (A, B):
        made.apply(worker, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.apply(A, ONE, sequence=2, kind="evicted", hashes=CHAIN[3:])
    assert made.found(CHAIN, now=0) == {A: 3, B: 5}
    made.apply(B, ONE, sequence=2, kind="cleared")
    assert made.found(CHAIN, now=0) == {A: 3, B: 0}
    assert made.swept() == 3


def test_a_gap_degrades_the_worker_until_its_snapshot() -> None:
    made = index(A, B)
    made.apply(A, ONE, sequence=2, kind="stored", hashes=CHAIN[:1], now=10.0)
    made.give_up_waiting(now=10.0 + EARLY_WAIT_S)
    assert made.take_gaps() == [A]
    assert (made.state, made.doubted()) == (IndexState.DEGRADED, [(A, ONE)])

    assert made.load(A, ONE, sequence=2, hashes=CHAIN[:4])
    assert (made.state, made.doubted()) == (IndexState.EXACT, [])
    assert made.found(CHAIN, now=0) == {A: 4, B: 0}


def test_events_a_snapshot_already_holds_are_not_applied_again() -> None:
    made = index(A)
    made.load(A, ONE, sequence=7, hashes=CHAIN[:2])
    made.apply(A, ONE, sequence=6, kind="cleared")
    assert made.apply(A, ONE, sequence=8, kind="stored", hashes=CHAIN[2:3]) is IndexState.EXACT
    assert made.found(CHAIN, now=0) == {A: 3}


def test_a_snapshot_older_than_events_already_applied_is_no_use() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    assert not made.load(A, ONE, sequence=0, hashes=())
    assert made.found(CHAIN, now=0) == {A: 5}


def test_a_new_epoch_begins_empty_and_the_old_one_is_not_believed() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.follow_worker(A, TWO)
    assert made.apply(A, ONE, sequence=2, kind="stored", hashes=CHAIN) is None
    assert made.found(CHAIN, now=0) == {A: 0}
    assert made.states == {A: IndexState.OFF}


def test_workers_that_leave_are_forgotten_and_their_bits_serve_others() -> None:
    made = index(A, B)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.apply(B, ONE, sequence=1, kind="stored", hashes=CHAIN[:2])
    late = WorkerId("c")
    made.follow_only_workers({B: ONE, late: ONE})
    assert made.found(CHAIN, now=0) == {B: 2, late: 0}


def test_a_dispatched_prompt_counts_as_cached_for_two_seconds() -> None:
    made = index(A, B)
    made.expect_blocks(A, b"".join(CHAIN[:4]), now=10.0)
    assert made.found(CHAIN, now=10.0 + SPECULATIVE_TTL_S / 2) == {A: 4, B: 0}
    assert made.found(CHAIN, now=10.0 + SPECULATIVE_TTL_S) == {A: 0, B: 0}


def test_what_is_only_expected_is_told_apart_from_what_is_held() -> None:
    made = index(A, B)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN[:2])
    made.expect_blocks(A, b"".join(CHAIN[:4]), now=10.0)
    slot = made.slot_of(A)
    assert slot is not None
    depths, held = made.depths_and_held(b"".join(CHAIN), now=10.5)
    assert (int(depths[slot]), int(held[slot])) == (4, 2)
    depths, held = made.depths_and_held(b"".join(CHAIN[1:]), now=10.5)
    assert depths is held, "nothing of that chain is expected"
    assert depths[slot] == 1


def test_a_prompt_dispatched_again_is_expected_for_longer() -> None:
    made = index(A)
    made.expect_blocks(A, b"".join(CHAIN), now=10.0)
    made.expect_blocks(A, b"".join(CHAIN[:2]), now=11.0)
    assert made.found(CHAIN, now=12.5) == {A: 2}
    assert made.found(CHAIN, now=13.5) == {A: 0}


def test_expectations_of_a_lost_worker_do_not_pass_to_its_successor() -> None:
    made = index(A)
    made.expect_blocks(A, b"".join(CHAIN), now=10.0)
    made.follow_worker(A, TWO)
    assert made.found(CHAIN, now=10.5) == {A: 0}


def test_a_cut_feed_makes_every_exact_worker_doubted() -> None:
    made = index(A, B)
    made.doubt_all()
    assert made.doubted() == [(A, ONE), (B, ONE)]
    assert made.state is IndexState.DEGRADED


def test_nothing_learned_of_anyone_is_off() -> None:
    made = index()
    made.follow_worker(A, ONE)
    assert made.state is IndexState.OFF


def test_an_event_that_was_overtaken_is_waited_for() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=3, kind="evicted", hashes=CHAIN[2:], now=10.0)
    made.apply(A, ONE, sequence=2, kind="stored", hashes=CHAIN[2:], now=10.0)
    made.give_up_waiting(now=10.0 + EARLY_WAIT_S / 2)
    assert (made.found(CHAIN, now=0), made.is_waiting) == ({A: 0}, True)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN[:3], now=10.0)
    assert (made.state, made.is_waiting) == (IndexState.EXACT, False)
    assert made.found(CHAIN, now=0) == {A: 2}


def test_no_more_than_a_few_events_wait_for_one_that_was_overtaken() -> None:
    made = index(A)
    for sequence in range(2, EARLY_EVENTS + 3):
        assert made.state is IndexState.EXACT
        made.apply(A, ONE, sequence=sequence, kind="stored", hashes=CHAIN)
    assert (made.state, made.found(CHAIN, now=0)) == (IndexState.DEGRADED, {A: 5})


def test_a_rewritten_set_is_asked_for_at_once() -> None:
    made = index(A)
    assert made.apply(A, ONE, sequence=2, kind="stored") is IndexState.DEGRADED
    assert made.doubted() == [(A, ONE)]


def test_events_that_came_before_the_snapshot_they_follow_are_applied_after_it() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=9, kind="stored", hashes=CHAIN[2:4])
    assert made.load(A, ONE, sequence=8, hashes=CHAIN[:2])
    assert (made.state, made.found(CHAIN, now=0)) == (IndexState.EXACT, {A: 4})


def test_what_was_known_is_told_until_a_snapshot_is_whole() -> None:
    made = index(A)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN[:2])
    load = made.begin_snapshot(A, ONE, sequence=5, packed=b"".join(CHAIN))
    assert load is not None
    for _ in load.store_slices():
        assert made.found(CHAIN, now=0) == {A: 2}
    assert load.finish()
    assert made.found(CHAIN, now=0) == {A: 5}


def test_a_snapshot_of_a_worker_that_left_meanwhile_is_no_use() -> None:
    made = index(A)
    load = made.begin_snapshot(A, ONE, sequence=5, packed=b"".join(CHAIN))
    assert load is not None
    for _ in load.store_slices():
        made.follow_worker(A, TWO)
    assert not load.finish()
    assert (made.found(CHAIN, now=0), made.swept()) == ({A: 0}, 0)


@pytest.mark.parametrize("table", ["C", "Python"])
def test_what_there_is_no_room_for_is_refused_and_asked_for_when_there_is(table: str) -> None:
    many = [BlockHash(n.to_bytes(16, "big")) for n in range(1, 61)]
    if table == "C":
        made = index(A, B, max_blocks=64)
    else:
        made = Index(max_blocks=64, table=DictTable(max_blocks=64))
        for worker in (A, B):
            made.follow_worker(worker, ONE)
            made.load(worker, ONE, sequence=0, hashes=())
    made.apply(A, ONE, sequence=1, kind="stored", hashes=many)
    state = made.apply(B, ONE, sequence=1, kind="stored", hashes=CHAIN)
    assert (state, made.num_refused) == (IndexState.DEGRADED, 1)
    assert made.found(CHAIN, now=0) == {A: 0, B: 4}
    assert made.doubted() == []

    made.apply(A, ONE, sequence=2, kind="cleared")
    made.swept()
    assert made.doubted() == [(B, ONE)]
    made.load(B, ONE, sequence=1, hashes=CHAIN)
    assert (made.state, made.found(CHAIN, now=0)) == (IndexState.EXACT, {A: 0, B: 5})


def test_blocks_of_those_that_left_make_room_by_and_by() -> None:
    made = index(A, B)
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.apply(B, ONE, sequence=1, kind="stored", hashes=CHAIN[:2])
    made.forget_worker(A)
    assert made.found(CHAIN, now=0) == {B: 2}
    assert (made.is_dirty, made.swept()) == (True, 2)


@pytest.mark.parametrize("table", [None, DictTable(max_blocks=64)])
def test_a_closed_worker_of_whom_events_are_missed_is_walked_block_by_block(
    table: DictTable | None,
) -> None:
    """What it is thought to hold has gaps until its snapshot was read."""
    made = Index(max_blocks=64, table=table)
    made.follow_worker(A, ONE, is_prefix_closed=True)
    made.load(A, ONE, sequence=0, hashes=CHAIN)
    assert made.found(CHAIN, now=0.0) == {A: 5}
    made.apply(A, ONE, sequence=2, kind="evicted", hashes=CHAIN[1:2])
    made.give_up_waiting(now=EARLY_WAIT_S)
    assert made.state_of(A) is IndexState.DEGRADED
    assert made.found(CHAIN, now=0.0) == {A: 1}
    made.load(A, ONE, sequence=2, hashes=CHAIN[:3])
    assert made.found(CHAIN, now=0.0) == {A: 3}
    made.apply(A, ONE, sequence=3, kind="cleared")
    assert made.found(CHAIN, now=0.0) == {A: 0}


@pytest.mark.parametrize("twin", [False, True])
def test_a_closed_worker_whose_blocks_were_refused_is_walked_block_by_block(twin: bool) -> None:
    table = DictTable(max_blocks=2) if twin else None
    made = Index(max_blocks=2, table=table)
    made.follow_worker(A, ONE, is_prefix_closed=True)
    made.load(A, ONE, sequence=0, hashes=CHAIN[:2])
    made.apply(A, ONE, sequence=1, kind="stored", hashes=CHAIN[2:3])
    made.apply(A, ONE, sequence=2, kind="evicted", hashes=CHAIN[:1])
    made.apply(A, ONE, sequence=3, kind="stored", hashes=CHAIN[3:4])
    assert made.state_of(A) is IndexState.DEGRADED
    assert made.found(CHAIN[1:4], now=0.0) == {A: 1}
