"""What the benchmark of KV transfer says of what it measured."""

from dataclasses import replace

import numpy as np
import pytest

from bench.kvtransfer.bars import verdicts
from bench.kvtransfer.case import MIB, SMALL_BLOCK_BYTES, Case, fill, move, num_wrong, stamp
from bench.kvtransfer.catalogue import LIMITS, OURS, PEERS, Mover
from bench.kvtransfer.pair import run
from bench.kvtransfer.rounds import QUICK, sizes
from bench.kvtransfer.row import Row, rows
from bench.kvtransfer.side import Outcome, Sample
from bench.kvtransfer.tally import Tally

CASE = Case(block_bytes=4096, total_bytes=16 * 4096, num_warm=0, num_timed=1)
BULK = sizes(QUICK, "bulk")[0]
NOTICE = sizes(QUICK, "latency")[0]


def named(name: str) -> Mover:
    return next(each for each in (*OURS, *PEERS) if each.name == name)


def took(*seconds: float, waiting: float = 0.0) -> Outcome:
    return Outcome(samples=tuple(Sample(seconds=s, cpu_s=0.01, waiting=waiting) for s in seconds))


def row_of(tally: Tally, mode: str) -> Row:
    return next(each for each in rows(tally, QUICK, run="r") if each.mode == mode)


def moved() -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """A target pool to which CASE's first move was made."""
    source, target = (np.zeros(CASE.pool_bytes // 8, dtype=np.uint64) for _ in range(2))
    fill(source)
    each = move(CASE, 0)
    stamp(source, each)
    shape = (CASE.pool_blocks, CASE.words)
    target.reshape(shape)[each.target_N] = source.reshape(shape)[each.source_N]
    return target


def test_moved_blocks_hold_the_right_bytes() -> None:
    assert num_wrong(moved(), move(CASE, 0)) == 0


@pytest.mark.parametrize("word", [0, 17, CASE.words - 1])
def test_one_wrong_word_is_found(word: int) -> None:
    target = moved()
    target[move(CASE, 0).target_N[5] * CASE.words + word] ^= np.uint64(1 << 40)
    assert num_wrong(target, move(CASE, 0)) == 1


def test_ids_are_scattered_and_differ_between_the_pools() -> None:
    each = move(CASE, 3)
    assert len(set(each.source_N.tolist())) == len(set(each.target_N.tolist())) == CASE.num_blocks
    assert (each.source_N != each.target_N).any()
    assert (np.diff(each.source_N) != 1).any()


def test_a_peer_is_quoted_in_the_setting_that_suits_it() -> None:
    nixl, gloo = named("nixl write"), named("gloo")
    tally = Tally((nixl, gloo))
    tally.add(nixl, "plain", BULK, took(0.02))
    tally.add(nixl, "tuned", BULK, took(0.01))
    tally.add(gloo, "plain", BULK, took(0.015))
    row = row_of(tally, "both copy")
    assert (row.best_peer_name, row.peers["nixl write"].setting) == ("nixl write", "tuned")


def test_a_wrong_byte_takes_the_figure_away_and_says_so() -> None:
    ours = named("baton shm, both copy")
    tally = Tally((ours,))
    tally.add(ours, "plain", BULK, took(0.01))
    tally.add(ours, "plain", BULK, Outcome(failed="1 blocks hold wrong bytes"))
    row = row_of(tally, "both copy")
    assert (row.ours, row.ours_failed) == (None, "1 blocks hold wrong bytes")


def test_over_tcp_ours_is_compared_with_peers_that_use_nothing_else() -> None:
    fast, slow = named("nixl write"), named("nixl write tcp")
    tally = Tally((fast, slow))
    tally.add(fast, "plain", BULK, took(0.01))
    tally.add(slow, "plain", BULK, took(0.02))
    assert row_of(tally, "tcp").best_peer_name == "nixl write tcp"


def test_a_receiver_is_compared_with_those_that_wait_alike() -> None:
    polls, sleeps = named("nixl write"), named("gloo")
    tally = Tally((polls, sleeps))
    tally.add(polls, "plain", NOTICE, took(30e-6, waiting=0.98))
    tally.add(sleeps, "plain", NOTICE, took(90e-6, waiting=0.02))
    assert row_of(tally, "sleeping").best_peer_name == "gloo"
    assert row_of(tally, "spinning").best_peer_name == "nixl write"


def test_a_bar_is_met_by_the_ratio_and_missed_without_a_figure() -> None:
    ours, peer = named("baton shm, both copy"), named("nixl read")
    tally = Tally((ours, peer))
    tally.add(ours, "plain", BULK, took(0.01))
    tally.add(peer, "plain", BULK, took(0.021))
    found = {
        (each.bar.mode, each.bar.key): each
        for each in verdicts(rows(tally, QUICK, run="r"))
        if each.row.block_bytes == SMALL_BLOCK_BYTES and each.bar.total_bytes in (0, 64 * MIB)
    }
    assert found["both copy", "ratio_to_best_peer"].met
    assert not found["one copies", "ratio_to_best_peer"].met
    assert "MISSED" in str(found["tcp", "ratio_to_limit"])


def test_a_contestant_that_cannot_start_fails_and_says_why() -> None:
    broken = replace(LIMITS[0], module="no_such_file")
    (outcome,) = run(broken, "plain", [CASE], within_s=20.0)
    assert "ModuleNotFoundError" in outcome.failed


def test_a_contestant_that_hangs_is_ended_and_says_so() -> None:
    (outcome,) = run(LIMITS[0], "plain", [replace(CASE, standing=True, pause_s=30)], within_s=2.0)
    assert "hung" in outcome.failed
