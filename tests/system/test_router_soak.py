"""Four hundred streams, some of them of slow clients and of clients that leave; in full:
`make soak-router`."""

import pytest

from bench.router_soak import run

pytestmark = [pytest.mark.system, pytest.mark.long]


def test_every_other_stream_is_whole_every_block_comes_back_and_memory_is_bounded() -> None:
    soak = run(num=400, seconds=16.0, pace_ms=25.0)
    assert not soak.first_failure
    # Of each place at least its first stream; how many follow in that time is the machine's affair.
    assert soak.kinds["whole"] >= 320
    assert soak.kinds["wrong"] == soak.kinds["failed"] == 0
    assert soak.kinds["hung up on"] > 20
    assert soak.kinds["cut"] > 0
    assert soak.num_held_blocks == 0
    assert soak.growth < 1.25
