"""The decode service between an engine and a sink that do what the test says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.checkpoints import write_checkpoint
from support.words import LAYOUT, decode

from decode_worker.service import DecodeService
from engine.batch import SequenceId
from engine.commands import Submission
from engine.loop import EngineStats
from kvtransfer.messages import FetchId
from kvtransfer.sink import FetchEnd, Landed
from protocol import codec
from protocol.ids import Epoch, LeaseId, RouterId, WorkerId
from protocol.messages import Blocks, FirstToken, Load, Ticket, ToRouter
from protocol.telemetry import WorkerMetrics
from protocol.text import Tokenizer

TICKET = Ticket(
    worker=WorkerId("prefill-0"),
    epoch=Epoch(1),
    lease=LeaseId(1),
    address="",
    layout=LAYOUT,
    compat="same",
    num_tokens=3,
)


class FakeEngine:
    def __init__(self) -> None:
        self.submitted: list[Submission] = []

    def submit(self, submission: Submission) -> None:
        self.submitted.append(submission)

    def fetch_done(self, sequence: SequenceId, outcome: object) -> None:
        pass

    def stats(self) -> EngineStats:
        return EngineStats(
            blocks=Blocks(total=8, free=8, cached=0, leased=0),
            load=Load(running=0, waiting=0, waiting_tokens=0),
            prefill_tokens_per_s=0.0,
            decode_step_s=0.0,
            num_steps=0,
            num_preempted=0,
        )


class FakeSink:
    transports_used: tuple[tuple[str, int], ...] = ()

    def __init__(self) -> None:
        self.ends: list[Callable[[FetchEnd], None]] = []

    def hold(self, ticket: Ticket) -> None:
        pass

    def fetch(self, *, on_end: Callable[[FetchEnd], None], **_: Any) -> FetchId:
        self.ends.append(on_end)
        return FetchId(len(self.ends))


class Bench:
    def __init__(self, path: Path) -> None:
        self.said: list[ToRouter] = []
        self.engine, self.sink = FakeEngine(), FakeSink()
        self.service = DecodeService(
            tokenizer=Tokenizer.load(write_checkpoint(path)),
            send=lambda _, message: self.said.append(message),
            record=self._record,
            give_up=pytest.fail,
            metrics=WorkerMetrics(),
        )
        self.service.attach(
            epoch=Epoch(1),
            engine=self.engine,  # type: ignore[arg-type]
            sink=self.sink,  # type: ignore[arg-type]
            layout=LAYOUT,
        )

    def fetch(self, request: str, end: FetchEnd) -> None:
        """A request whose fetch ends so."""
        self.service.take(RouterId("router"), replace(decode(request), ticket=TICKET))
        self.service.admitted(self.engine.submitted[-1].id, (0,), (1,), 0, 0.0)
        self.sink.ends[-1](end)

    @staticmethod
    def _record(_: Sequence[object]) -> None:
        pass


def landed(*, num_bytes: int, flow_s: float) -> Landed:
    return Landed(
        note=codec.first_token.encode(FirstToken(token_id=5, logprob=None, top=())),
        transport="shm",
        transport_why="",
        num_blocks=1,
        num_bytes=num_bytes,
        fetch_s=9.0,
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
