"""Pulls between an engine and a sink that do what the test says."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from support.services import ROUTER, VOCAB_SIZE, ServiceBench, transfer_ends
from support.words import LAYOUT, decode

from decode_worker.transfers import DecodeTransfers
from engine.loop import Engine
from engine.observer import PrefixToPull
from engine.sequence import Abandon, Complete, PullEnded, SequenceUsage
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.messages import FetchId
from protocol.errors import CapacityError, CorruptBlock, NotLent, PeerLost
from protocol.ids import BlockHash, Epoch, LeaseId, WorkerId
from protocol.messages import (
    Failed,
    Finished,
    PrefixPull,
    PrefixSource,
    PullOutcome,
    StepModel,
    Ticket,
)
from protocol.process.metrics import WorkerMetrics
from worker.requests import RequestTable
from worker.transfers.pulls import MIN_PULL_S, PullLimits, pull_deadline_s

SIZE = LAYOUT.block_tokens
SOURCE = PrefixSource(
    worker=WorkerId("prefill-7"), epoch=Epoch(3), address="tcp://127.0.0.1:1", num_tokens=4 * SIZE
)
SEED = BlockHash(b"s" * 16)
USAGE = SequenceUsage(num_tokens=0, cached_tokens=0, queued_s=0.0, prefill_s=0.0, decode_s=0.0)


class FakeSink:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[FetchId] = []
        self.full = False

    def pull(self, source: PrefixSource, **asked: Any) -> FetchId:
        if self.full:
            raise CapacityError("the sink takes no more fetches")
        assert source == SOURCE
        self.asked.append(asked)
        return FetchId(len(self.asked))

    def cancel(self, fetch: FetchId, *, reason: str) -> None:
        self.cancelled.append(fetch)

    @property
    def on_end(self) -> Callable[[FetchEnd], None]:
        told: Callable[[FetchEnd], None] = self.asked[-1]["on_end"]
        return told


class Bench(ServiceBench):
    def __init__(self, **limits: Any) -> None:
        self.sink = FakeSink()
        self.limits = PullLimits(**{"max_pulls": 2, "timeout_s": 3.0, **limits})
        super().__init__(self._transfers)

    def _transfers(
        self, engine: Engine, requests: RequestTable, metrics: WorkerMetrics
    ) -> DecodeTransfers:
        ends = transfer_ends(
            engine, metrics.transfer, sink=self.sink, layout=LAYOUT, limits=self.limits
        )
        self.quarantine = ends.quarantine
        return DecodeTransfers(
            ends=ends, layout=LAYOUT, vocab_size=VOCAB_SIZE, engine=engine, requests=requests
        )

    def begin(self, request: str = "r", *, first_block: int = 1) -> None:
        """A request whose engine asks for blocks `first_block` to 3."""
        message = replace(
            decode(request), token_ids=tuple(range(4 * SIZE + 1)), prefix_source=SOURCE
        )
        self.service.accept_request(ROUTER, message)
        self.sequence = self.engine.submitted[-1].id
        prefix = PrefixToPull(
            seed=SEED, hashes=(SEED,) * 4, token_ids=range(4 * SIZE), first_block=first_block,
            block_ids=tuple(range(10 + first_block, 14)),
        )  # fmt: skip
        if self.engine.submitted[-1].pull_tokens:
            self.observer.pull(self.sequence, prefix)

    def finish(self) -> PrefixPull:
        self.observer.ended(self.sequence, Complete("length"), USAGE)
        self.observer.settled()
        finished = self.story.told[-1]
        assert isinstance(finished, Finished) and finished.pull is not None
        return finished.pull


def landed(num_blocks: int) -> Landed:
    return Landed(
        note=b"", transport="tcp", transport_why="", num_blocks=num_blocks, num_bytes=64,
        fetch_s=0.1, first_s=0.1, flow_s=0.1, exposed_s=0.0,
    )  # fmt: skip


def test_what_landed_is_told_to_the_engine_the_router_and_the_metrics() -> None:
    bench = Bench()
    bench.begin()
    assert bench.engine.submitted[-1].pull_tokens == 4 * SIZE
    assert bench.sink.asked[0]["block_ids"] == (11, 12, 13)
    assert bench.transfers.moving() and not bench.transfers.is_idle()
    bench.sink.on_end(landed(2))
    assert bench.engine.pulls_ended == [PullEnded(3 * SIZE)]
    assert bench.transfers.is_idle()
    pull = bench.finish()
    assert (pull.source, pull.num_tokens, pull.outcome) == (SOURCE.worker, 2 * SIZE, "landed")
    assert bench.sample("baton_worker_prefix_pulls_total", outcome="landed") == 1
    assert bench.sample("baton_worker_pulled_tokens_total") == 2 * SIZE
    assert bench.sample("baton_worker_pulled_bytes_total", transport="tcp") == 64
    (use,) = bench.service.beat("ready").transports
    assert (use.peer, use.name, use.bytes) == (SOURCE.worker, "tcp", 64)


@pytest.mark.parametrize(
    ("end", "outcome", "num_blocks"),
    [
        (Lost(NotLent("nothing")), "declined", 0),
        (Lost(PeerLost("gone")), "lost", 0),
        (Lost(PeerLost("gone"), landed=(1, 2)), "lost", 2),
        (Lost(CorruptBlock("block 2"), landed=(1, 3)), "lost", 1),
        (Lost(PeerLost("gone"), landed=(2, 3)), "lost", 0),
        (Aborted("the client is gone", landed=(1,)), "aborted", 1),
    ],
)
def test_whatever_did_not_come_is_left_to_the_engine(
    end: FetchEnd, outcome: PullOutcome, num_blocks: int
) -> None:
    """Only what came without a gap counts."""
    bench = Bench()
    bench.begin()
    bench.sink.on_end(end)
    assert bench.engine.pulls_ended == [PullEnded((1 + num_blocks) * SIZE)]
    pull = bench.finish()
    assert (pull.outcome, pull.num_tokens) == (outcome, num_blocks * SIZE)
    assert bench.sample("baton_worker_prefix_pulls_total", outcome=outcome) == 1


def test_slots_under_a_late_write_are_quarantined() -> None:
    bench = Bench()
    bench.begin()
    bench.sink.on_end(Lost(PeerLost("stopped"), quarantined=(12,)))
    assert bench.engine.pulls_ended == [PullEnded(SIZE, (12,))]
    assert not bench.transfers.is_idle()
    bench.quarantine.quiet([12])
    assert bench.engine.quieted == [(12,)] and bench.transfers.is_idle()


def test_more_pulls_than_the_limit_are_computed() -> None:
    bench = Bench()
    for request in ("a", "b", "c"):
        bench.begin(request)
    assert len(bench.sink.asked) == 2
    assert bench.engine.pulls_ended == [PullEnded(SIZE)]
    assert bench.finish().outcome == "refused"
    bench.sink.on_end(landed(3))
    bench.begin("d")
    assert len(bench.sink.asked) == 3


def test_a_sink_that_takes_no_more_is_no_failure() -> None:
    bench = Bench()
    bench.sink.full = True
    bench.begin()
    assert bench.engine.pulls_ended == [PullEnded(SIZE)] and bench.transfers.is_idle()
    assert bench.finish().outcome == "refused"


@pytest.mark.parametrize("why", ["none allowed", "windows"])
def test_where_nothing_can_be_pulled_the_engine_is_not_asked_to(why: str) -> None:
    bench = Bench(max_pulls=0 if why == "none allowed" else 2)
    bench.engine.can_pull = why != "windows"
    bench.begin()
    assert bench.engine.submitted[-1].pull_tokens == 0
    assert bench.finish().outcome == "refused"


@pytest.mark.parametrize("how", ["aborted by the router", "ended by the engine"])
def test_an_end_of_the_request_cancels_its_pull(how: str) -> None:
    bench = Bench()
    bench.begin()
    if how == "aborted by the router":
        bench.service.abort_request(ROUTER, decode("r").request, decode("r").attempt)
    else:
        bench.observer.ended(bench.sequence, Abandon(), USAGE)
    assert bench.sink.cancelled[-1] == FetchId(1)


def test_a_router_that_is_gone_takes_its_pulls_along() -> None:
    bench = Bench()
    bench.begin()
    bench.service.forget_router(ROUTER)
    assert FetchId(1) in bench.sink.cancelled


def test_a_pull_beside_a_ticket_is_refused_by_name() -> None:
    bench = Bench()
    ticket = Ticket(
        worker=WorkerId("p"), epoch=Epoch(1), lease=LeaseId(1), address="", layout=LAYOUT,
        compat="", num_tokens=3,
    )  # fmt: skip
    bench.sink.drop = lambda *args, **more: None  # type: ignore[attr-defined]
    message = replace(decode("r"), ticket=ticket, prefix_source=SOURCE)
    bench.service.accept_request(ROUTER, message)
    (failed,) = bench.story.told
    assert isinstance(failed, Failed) and failed.code == "invalid"
    assert "prefix_source" in failed.message


@pytest.mark.parametrize(
    ("step", "deadline_s"),
    [
        (StepModel(), 3.0),
        (StepModel(token_s=1e-6), MIN_PULL_S),
        (StepModel(token_s=1e-3), 0.9),
        (StepModel(token_s=1e-3, attended_s=2e-6), 0.9 + 0.99),
        (StepModel(token_s=1.0), 3.0),
    ],
)
def test_a_pull_may_take_what_computing_would(step: StepModel, deadline_s: float) -> None:
    found = pull_deadline_s(range(100, 1_000), step=step, timeout_s=3.0)
    assert found == pytest.approx(deadline_s)
