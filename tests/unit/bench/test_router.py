"""What `bench.router` reads off its clients, and how it holds that to its bars."""

from bench.router_sim.bars import BURST, CHUNKS, REQUESTS, TOKENISING, verdicts
from bench.router_sim.clients import Answer

FIGURES = {
    f"{CHUNKS}baton, 2 engines": 7.0,
    f"{CHUNKS}sglang-router, 2 engines": 10.0,
    f"{REQUESTS}baton": 1.0,
    f"{REQUESTS}dynamo": 1.0,
    "ITL p99 ms: baton, 2 engines": 25.5,
    f"{BURST}baton": 130.0,
    f"{BURST}direct": 40.0,
    TOKENISING: 120.0,
    "alone ms: baton": 2.5,
    "alone ms: direct": 0.5,
}


def _chunk(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


def test_a_bar_is_met_up_to_its_edge_and_missed_beyond() -> None:
    met = {bar.what.partition(":")[0]: bar.is_met for bar in verdicts(FIGURES)}
    assert met == {
        "baton, 2 engines": True,
        "CPU a request over Dynamo's frontend's": False,
        "ITL p99 ms": False,
        "burst TTFT p50 over a direct arrival and half the burst's tokenising": True,
        "ms that one request alone waits longer than without a router": True,
    }


def test_a_bar_beside_a_peer_that_did_not_run_is_left_out() -> None:
    alone = {
        name: figure
        for name, figure in FIGURES.items()
        if "sglang" not in name and "dyn" not in name
    }
    assert len(verdicts(alone)) == len(verdicts(FIGURES)) - 2


def test_times_are_of_text_and_not_of_what_comes_before_it() -> None:
    reads = [
        (1.0, b"HTTP/1.1 200 OK\r\n\r\n" + _chunk("")),
        (2.0, _chunk("a")),
        (2.5, _chunk("b") + _chunk("c")),
        (4.0, _chunk("d") + b"data: [DONE]\n\n"),
    ]
    answer = Answer(sent_at=0.5, reads=reads)
    assert answer.first_s() == 1.5
    assert answer.gaps_s() == [0.5, 0.0, 1.5]
    assert answer.num_chunks == 5
    assert answer.text() == "abcd"
