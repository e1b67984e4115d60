"""How recorded traces become workloads, and what the best cache of all would hit."""

import gzip
import json
from pathlib import Path

import pytest

from bench.placement_sim.hardware import Hardware
from bench.placement_sim.request import Request
from bench.placement_sim.traces import compress, ideal_cached, lay_over, read_trace
from bench.placement_sim.workload import misleading

HARDWARE = Hardware()


def request(number: int, *blocks: int, at: float = 0.0, beyond: int = 10) -> Request:
    num_tokens = len(blocks) * 512 + beyond
    return Request(number=number, arrives_at=at, num_tokens=num_tokens, num_output=5, blocks=blocks)


def test_arrivals_of_one_stamp_are_spread_over_its_bucket(tmp_path: Path) -> None:
    row = {"timestamp": 6000, "input_length": 1100, "output_length": 3, "hash_ids": [4, 5, 6]}
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([json.dumps(row)] * 50).encode()))
    trace = read_trace(path, block_tokens=512)
    arrivals = [each.arrives_at for each in trace]
    assert arrivals == sorted(arrivals)
    assert 6.0 <= min(arrivals) < 6.5 and 8.5 < max(arrivals) < 9.0
    assert trace[0].blocks == (4, 5), "the third block is not full"


def test_copies_share_no_block_and_keep_the_pace() -> None:
    trace = [request(i, i, i + 1, at=float(i)) for i in range(100)]
    laid = lay_over(trace, num_copies=4, num_requests=200)
    assert len(laid) == pytest.approx(200, abs=4)
    assert laid[-1].arrives_at == pytest.approx(50, abs=1)
    assert [each.number for each in laid] == list(range(len(laid)))
    assert {block // 101 for each in laid for block in each.blocks} == {0, 1, 2, 3}


def test_a_load_of_one_keeps_prefill_workers_busy() -> None:
    trace = [request(i, 2 * i, 2 * i + 1, at=float(i)) for i in range(1, 50)]
    factor = compress(trace, load=0.5, num_prefill=2, hardware=HARDWARE)
    each_s = HARDWARE.prefill_s(num_tokens=1034, num_cached=0)
    assert 49 * factor * 2 * 0.5 == pytest.approx(49 * each_s)


def test_the_best_cache_of_all_hits_what_ever_came() -> None:
    trace = [request(0, 1, 2), request(1, 1, 2, 3), request(2, 9), request(3, 1, 2, beyond=0)]
    assert ideal_cached(trace, HARDWARE) == [0, 1024, 0, 1023]


def test_a_shared_cache_with_a_bound_gives_up_leaves_first() -> None:
    trace = [request(0, 1, 2), request(1, 8, 9), request(2, 1, 2)]
    assert ideal_cached(trace, HARDWARE, num_blocks=3) == [0, 0, 512]


def test_workloads_that_mislead_have_what_misleads() -> None:
    one, hot, cold = misleading(4, num_requests=400, hardware=HARDWARE)
    assert len({each.blocks[:8] for each in one.requests}) == 1
    firsts = [each.blocks[0] for each in hot.requests]
    assert firsts.count(0) == pytest.approx(200, abs=40)
    assert set(cold.late) == {"prefill-0002", "prefill-0003", "decode-0002", "decode-0003"}
    stretched = cold.stretch(2.0)
    assert stretched.late["prefill-0002"] == 2 * cold.late["prefill-0002"]
