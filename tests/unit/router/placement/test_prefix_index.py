from protocol.ids import BlockHash, Epoch, WorkerId
from router.placement.prefix_index import SPECULATIVE_TTL_S, IndexState, PrefixIndex

A, B = WorkerId("a"), WorkerId("b")
ONE, TWO = Epoch(1), Epoch(2)
CHAIN = [BlockHash(bytes([n]) * 16) for n in range(5)]


def index(*workers: WorkerId) -> PrefixIndex:
    """Follows epoch 1 of each, exact and empty at sequence 0."""
    made = PrefixIndex()
    for worker in workers:
        made.follow_worker(worker, ONE)
        assert made.load_snapshot(worker, ONE, sequence=0, hashes=())
    return made


def test_depth_is_the_number_of_leading_blocks_each_worker_holds() -> None:
    made = index(A, B)
    made.apply_event(A, ONE, sequence=1, kind="stored", hashes=CHAIN[:3])
    made.apply_event(B, ONE, sequence=1, kind="stored", hashes=CHAIN)
    assert made.depths(CHAIN, now=0) == {A: 3, B: 5}


def test_a_block_behind_a_hole_does_not_count() -> None:
    made = index(A)
    made.apply_event(A, ONE, sequence=1, kind="stored", hashes=[CHAIN[0], CHAIN[2]])
    assert made.depths(CHAIN, now=0) == {A: 1}


def test_evicted_and_cleared_blocks_are_forgotten_for_that_worker_alone() -> None:
    made = index(A, B)
    for worker in (A, B):
        made.apply_event(worker, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.apply_event(A, ONE, sequence=2, kind="evicted", hashes=CHAIN[3:])
    assert made.depths(CHAIN, now=0) == {A: 3, B: 5}
    made.apply_event(B, ONE, sequence=2, kind="cleared")
    assert made.depths(CHAIN, now=0) == {A: 3, B: 0}
    assert len(made) == 3


def test_a_gap_degrades_the_worker_until_its_snapshot() -> None:
    made = index(A, B)
    state = made.apply_event(A, ONE, sequence=2, kind="stored", hashes=CHAIN[:1])
    assert state is IndexState.DEGRADED
    assert (made.state, made.doubted()) == (IndexState.DEGRADED, [(A, ONE)])

    assert made.load_snapshot(A, ONE, sequence=2, hashes=CHAIN[:4])
    assert (made.state, made.doubted()) == (IndexState.EXACT, [])
    assert made.depths(CHAIN, now=0) == {A: 4, B: 0}


def test_events_a_snapshot_already_holds_are_not_applied_again() -> None:
    made = index(A)
    made.load_snapshot(A, ONE, sequence=7, hashes=CHAIN[:2])
    made.apply_event(A, ONE, sequence=6, kind="cleared")
    assert (
        made.apply_event(A, ONE, sequence=8, kind="stored", hashes=CHAIN[2:3]) is IndexState.EXACT
    )
    assert made.depths(CHAIN, now=0) == {A: 3}


def test_a_snapshot_older_than_events_already_applied_is_no_use() -> None:
    made = index(A)
    made.apply_event(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    assert not made.load_snapshot(A, ONE, sequence=0, hashes=())
    assert made.depths(CHAIN, now=0) == {A: 5}


def test_a_new_epoch_begins_empty_and_the_old_one_is_not_believed() -> None:
    made = index(A)
    made.apply_event(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.follow_worker(A, TWO)
    assert made.apply_event(A, ONE, sequence=2, kind="stored", hashes=CHAIN) is None
    assert made.depths(CHAIN, now=0) == {A: 0}
    assert made.states == {A: IndexState.OFF}


def test_workers_that_leave_are_forgotten_and_their_bits_serve_others() -> None:
    made = index(A, B)
    made.apply_event(A, ONE, sequence=1, kind="stored", hashes=CHAIN)
    made.apply_event(B, ONE, sequence=1, kind="stored", hashes=CHAIN[:2])
    late = WorkerId("c")
    made.follow_only_workers({B: ONE, late: ONE})
    assert made.depths(CHAIN, now=0) == {B: 2, late: 0}


def test_a_dispatched_prompt_counts_as_cached_for_two_seconds() -> None:
    made = index(A, B)
    made.expect_blocks(A, CHAIN[:4], now=10.0)
    assert made.depths(CHAIN, now=10.0 + SPECULATIVE_TTL_S / 2) == {A: 4, B: 0}
    assert made.depths(CHAIN, now=10.0 + SPECULATIVE_TTL_S) == {A: 0, B: 0}


def test_a_prompt_dispatched_again_is_expected_for_longer() -> None:
    made = index(A)
    made.expect_blocks(A, CHAIN, now=10.0)
    made.expect_blocks(A, CHAIN[:2], now=11.0)
    assert made.depths(CHAIN, now=12.5) == {A: 2}
    assert made.depths(CHAIN, now=13.5) == {A: 0}


def test_expectations_of_a_lost_worker_do_not_pass_to_its_successor() -> None:
    made = index(A)
    made.expect_blocks(A, CHAIN, now=10.0)
    made.follow_worker(A, TWO)
    assert made.depths(CHAIN, now=10.5) == {A: 0}


def test_a_cut_feed_makes_every_exact_worker_doubted() -> None:
    made = index(A, B)
    made.doubt_all()
    assert made.doubted() == [(A, ONE), (B, ONE)]
    assert made.state is IndexState.DEGRADED


def test_nothing_learned_of_anyone_is_off() -> None:
    made = PrefixIndex()
    made.follow_worker(A, ONE)
    assert made.state is IndexState.OFF
