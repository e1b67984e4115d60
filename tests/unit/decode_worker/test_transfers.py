"""The decode service between an engine and a sink that do what the test says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.checkpoints import write_checkpoint
from support.services import ROUTER, VOCAB_SIZE, ServiceBench, transfer_ends
from support.words import LAYOUT, decode

from decode_worker.transfers import DecodeTransfers
from engine.kvcache.windows import NO_BLOCK
from engine.loop import Engine
from engine.sequence import FetchLost
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.messages import FetchId
from kvtransfer.sink.events import AskedAgain, LinkRefused, LinkUp, Rejected
from protocol import codec, messages
from protocol.errors import PeerLost
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.layout import KvLayout
from protocol.messages import FirstToken, Ticket
from protocol.process.metrics import WorkerMetrics
from protocol.text.tokenizer import Tokenizer
from worker.requests import RequestTable

TICKET = Ticket(
    worker=WorkerId("prefill-0"),
    epoch=Epoch(1),
    lease=LeaseId(1),
    address="",
    layout=LAYOUT,
    compat="same",
    num_tokens=3,
)


class FakeSink:
    def __init__(self) -> None:
        self.ends: list[Callable[[FetchEnd], None]] = []
        self.asked: list[tuple[list[int], list[int]]] = []
        """Indices and block ids of each fetch."""

    def hold(self, ticket: Ticket) -> None:
        pass

    def fetch(self, *, on_end: Callable[[FetchEnd], None], **asked: Any) -> FetchId:
        self.ends.append(on_end)
        self.asked.append((list(asked["indices"]), list(asked["block_ids"])))
        return FetchId(len(self.ends))


class Bench(ServiceBench):
    def __init__(self, path: Path, *, layout: KvLayout = LAYOUT) -> None:
        self.sink, self.layout = FakeSink(), layout
        tokenizer = Tokenizer.load(write_checkpoint(path))
        super().__init__(self._transfers, tokenizer=tokenizer)

    def _transfers(
        self, engine: Engine, requests: RequestTable, metrics: WorkerMetrics
    ) -> DecodeTransfers:
        ends = transfer_ends(engine, metrics.transfer, sink=self.sink, layout=self.layout)
        self.fetch_metrics, self.quarantine = ends.metrics, ends.quarantine
        return DecodeTransfers(
            ends=ends,
            layout=self.layout,
            vocab_size=VOCAB_SIZE,
            engine=engine,
            requests=requests,
        )

    def fetch(
        self,
        request: str,
        end: FetchEnd,
        *,
        num_blocks: int = 1,
        num_cached_tokens: int = 0,
        table: tuple[int, ...] = (),
    ) -> None:
        """A request of so many full token blocks whose fetch ends so."""
        num_tokens = TICKET.num_tokens if num_blocks == 1 else num_blocks * LAYOUT.block_tokens
        message = replace(decode(request), token_ids=tuple(range(1, num_tokens + 1)))
        ticket = replace(TICKET, num_tokens=num_tokens)
        self.service.accept_request(ROUTER, replace(message, ticket=ticket))
        table = table or tuple(range(num_blocks))
        generations = (1,) * len(table)
        sequence = self.engine.submitted[-1].id
        self.observer.admitted(sequence, table, generations, num_cached_tokens, 0.0)
        self.sink.ends[-1](end)


def landed(*, num_bytes: int, flow_s: float) -> Landed:
    return Landed(
        note=codec.first_token.encode(FirstToken(token_id=5, logprob=None, top=())),
        transport="shm",
        transport_why="",
        num_blocks=1,
        num_bytes=num_bytes,
        fetch_s=9.0,
        first_s=0.002,
        flow_s=flow_s,
        exposed_s=0.001,
    )


def test_transfer_speed_is_bytes_over_the_time_they_flowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.service.beat("ready").speeds.transfer_bytes_per_s == 0
    bench.fetch("r1", landed(num_bytes=0, flow_s=0.0))
    assert bench.service.beat("ready").speeds.transfer_bytes_per_s == 0
    bench.fetch("r2", landed(num_bytes=4_000_000, flow_s=0.5))
    assert bench.service.beat("ready").speeds.transfer_bytes_per_s == 8e6


@pytest.mark.parametrize(
    "end",
    [
        Lost(PeerLost("gone"), landed=(1, 2, 4), quarantined=(3,)),
        Aborted("cancelled", landed=(1, 2, 4), quarantined=(3,)),
    ],
    ids=["lost", "aborted"],
)
def test_what_arrived_without_a_gap_before_a_fetch_ended_badly_is_kept(
    tmp_path: Path, end: FetchEnd
) -> None:
    bench = Bench(tmp_path)
    bench.fetch("r1", end, num_blocks=6, num_cached_tokens=LAYOUT.block_tokens)
    (outcome,) = bench.engine.outcomes
    assert isinstance(outcome, FetchLost)
    assert outcome.num_tokens == 3 * LAYOUT.block_tokens
    assert outcome.quarantined == (3,)
    assert bench.sample("baton_worker_kv_kept_blocks_total") == 2


TWO_GROUPS = replace(LAYOUT, num_groups=2)
WINDOWED = (10, NO_BLOCK, 11, NO_BLOCK, 12, 22, 13, 23)
"""Four token blocks; the second group sees the last two."""


def test_only_blocks_that_are_seen_and_not_cached_are_fetched(tmp_path: Path) -> None:
    bench = Bench(tmp_path, layout=TWO_GROUPS)
    end = landed(num_bytes=10, flow_s=0.5)
    bench.fetch("r1", end, num_blocks=4, num_cached_tokens=4, table=WINDOWED)
    assert bench.sink.asked == [([2, 4, 5, 6, 7], [11, 12, 22, 13, 23])]
    (message,) = bench.story.told
    assert isinstance(message, messages.Landed) and message.blocks_reused == 1


@pytest.mark.parametrize(
    ("arrived", "num_kept", "num_blocks"),
    [((2, 4), 2, 1), ((2, 4, 5, 6), 3, 3), ((2, 4, 5, 6, 7), 4, 5), ((4, 5), 1, 0)],
)
def test_a_token_block_is_kept_when_every_group_that_needs_it_has_it(
    tmp_path: Path, arrived: tuple[int, ...], num_kept: int, num_blocks: int
) -> None:
    bench = Bench(tmp_path, layout=TWO_GROUPS)
    lost = Lost(PeerLost("gone"), landed=arrived)
    bench.fetch("r1", lost, num_blocks=4, num_cached_tokens=4, table=WINDOWED)
    (outcome,) = bench.engine.outcomes
    assert isinstance(outcome, FetchLost)
    assert outcome.num_tokens == num_kept * LAYOUT.block_tokens
    assert bench.sample("baton_worker_kv_kept_blocks_total") == num_blocks


def test_a_source_lost_before_anything_arrived_keeps_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fetch("r1", Lost(PeerLost("gone"), landed=(1,)), num_blocks=3)
    assert bench.engine.outcomes == [FetchLost("PeerLost: gone")]


@pytest.mark.parametrize(
    "end",
    [Lost(PeerLost("gone"), quarantined=(1, 2)), Aborted("cancelled", quarantined=(1, 2))],
    ids=["lost", "aborted"],
)
def test_quarantined_blocks_are_given_back_to_the_engine_when_quiet(
    tmp_path: Path, end: FetchEnd
) -> None:
    bench = Bench(tmp_path)
    bench.fetch("r1", end, num_blocks=3)
    (outcome,) = bench.engine.outcomes
    assert isinstance(outcome, FetchLost) and outcome.quarantined == (1, 2)
    assert bench.sample("baton_worker_kv_quarantined_blocks") == 2
    bench.quarantine.quiet([1])
    assert bench.sample("baton_worker_kv_quarantined_blocks") == 1
    bench.quarantine.quiet([2])
    assert bench.engine.quieted == [(1,), (2,)]
    assert bench.sample("baton_worker_kv_quarantined_blocks") == 0


def test_beats_say_by_which_transport_and_why_kv_came_from_whom(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fetch("r1", landed(num_bytes=10, flow_s=0.5))
    (use,) = bench.service.beat("ready").transports
    assert (use.name, use.peer, use.fetches, use.bytes) == ("shm", TICKET.worker, 1, 10)


def test_a_fetch_is_measured_by_its_transport(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fetch("r1", landed(num_bytes=10, flow_s=0.5))
    shm = {"transport": "shm"}
    assert bench.sample("baton_worker_fetches_total", ending="landed", **shm) == 1
    assert bench.sample("baton_worker_kv_moved_bytes_total", **shm) == 10
    assert bench.sample("baton_worker_fetch_seconds_sum", **shm) == 9.0
    assert bench.sample("baton_worker_fetch_first_chunk_seconds_sum", **shm) == 0.002
    assert bench.sample("baton_worker_fetch_exposed_seconds_sum", **shm) == 0.001


def test_links_retries_and_rejected_blocks_are_counted_with_their_reasons(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    source, missed = WorkerId("prefill-0"), (("shm", "another host"),)
    for notice in (
        LinkUp(source=source, transport="shm", missed=()),
        LinkUp(source=source, transport="tcp", missed=missed),
        LinkRefused(source=source, missed=missed),
        AskedAgain(source=source, attempt=2),
        Rejected(num_blocks=3, why="the checksum is another"),
    ):
        bench.fetch_metrics.noticed(notice)

    def links(event: str, transport: str, instead_of: str, reason: str) -> float:
        labels = {"event": event, "transport": transport, "instead_of": instead_of}
        return bench.sample("baton_kv_transport_total", reason=reason, **labels)

    assert links("chosen", "shm", "", "first choice") == 1
    assert links("chosen", "tcp", "", "fallback") == 1
    assert links("fallback", "tcp", "shm", "another host") == 1
    assert links("refused", "", "shm", "another host") == 1
    assert bench.sample("baton_worker_fetch_retries_total") == 1
    wrong = {"reason": "the checksum is another"}
    assert bench.sample("baton_worker_kv_rejected_blocks_total", **wrong) == 3


def test_the_metric_of_forks_is_what_the_engine_has_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.engine.num_forked = 3
    assert bench.sample("baton_worker_forks") == 3
