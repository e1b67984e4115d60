"""The service of a worker on an engine that only remembers, moved by hand: no thread, no socket."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from support.checkpoints import byte_level_tokenizer

from engine.batch import SequenceId
from engine.commands import PrefixToLend, Submission
from engine.kvcache.loans import LoanId
from engine.loop import Engine, EngineStats
from engine.sequence import FetchOutcome, PullEnded
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from protocol.ids import Epoch, RouterId, WorkerId
from protocol.layout import Layout
from protocol.messages import Blocks, Load, StepModel, ToRouter
from protocol.process.metrics import TransferMetrics, WorkerMetrics
from protocol.text.packed_text import PackedText
from protocol.text.tokenizer import Tokenizer
from worker.observer import WorkerObserver
from worker.parts import LoadedModel, WorkerParts
from worker.requests import RequestTable, Transfers
from worker.service import EngineService
from worker.transfers.canary import CanaryFetches
from worker.transfers.ends import TransferEnds
from worker.transfers.fetch_metrics import FetchMetrics
from worker.transfers.lease_metrics import LeaseMetrics
from worker.transfers.loans import PrefixLoans
from worker.transfers.pulls import PrefixPulls, PullLimits
from worker.transfers.quarantine import Quarantine
from worker.transport_uses import TransportUses

ROUTER = RouterId("router")
PULL_LIMITS = PullLimits(max_pulls=8, timeout_s=3.0)
VOCAB_SIZE = 500


@dataclass
class Story:
    """What was told to the router, and whatever else a test adds, in order."""

    told: list[object] = field(default_factory=list)

    def send(self, router: RouterId, message: ToRouter) -> None:
        self.told.append(message)


class FakeEngine:
    """Runs nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.submitted: list[Submission] = []
        self.num_counted = 0
        """Of those submitted, that its thread has looked at."""
        self.num_forked = 0
        self.outcomes: list[FetchOutcome] = []
        """Of the fetches that have ended."""
        self.quieted: list[tuple[int, ...]] = []
        self.pulls_ended: list[PullEnded] = []
        self.asked: list[PrefixToLend] = []
        self.loans_ended: list[LoanId] = []
        self.can_pull = True
        self.step = StepModel()

    def submit(self, submission: Submission) -> None:
        self.submitted.append(submission)

    def fetch_done(self, sequence: SequenceId, outcome: FetchOutcome) -> None:
        self.outcomes.append(outcome)

    def pull_done(self, sequence: SequenceId, ended: PullEnded) -> None:
        self.pulls_ended.append(ended)

    def lend(self, prefix: PrefixToLend) -> None:
        self.asked.append(prefix)

    def end_loan(self, loan: LoanId) -> None:
        self.loans_ended.append(loan)

    def quiet(self, blocks: tuple[int, ...]) -> None:
        self.quieted.append(blocks)

    def release(self, sequence: SequenceId) -> None: ...

    def abort(self, sequence: SequenceId) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(
            blocks=Blocks(total=8, free=8, cached=0, leased=0),
            load=Load(running=0, waiting=0, waiting_tokens=0),
            prefill_tokens_per_s=0.0,
            decode_step_s=0.0,
            step=self.step,
            num_preempted=0,
            num_forked=self.num_forked,
            num_counted=self.num_counted,
        )


class ServiceBench:
    """A worker's service and observer around such an engine; `transfers` makes the role's part."""

    def __init__(
        self,
        transfers: Callable[[Engine, RequestTable, WorkerMetrics], Transfers],
        *,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.story, self.engine, self.metrics = Story(), FakeEngine(), WorkerMetrics()
        requests, nothing = RequestTable(self.story.send), cast(Any, None)
        engine = cast(Engine, self.engine)
        self.observer = WorkerObserver(
            requests=requests,
            metrics=self.metrics,
            record=lambda changes: None,
            give_up=pytest.fail,
        )
        self.transfers = transfers(engine, requests, self.metrics)
        model = LoadedModel(
            text=PackedText("text", b""),
            tokenizer=tokenizer or small_tokenizer(),
            assembly=nothing,
            transports=(),
        )
        parts = WorkerParts(
            settings=nothing,
            worker=WorkerId("worker-0"),
            epoch=Epoch(1),
            model=model,
            engine=engine,
            requests=requests,
            metrics=self.metrics,
            give_up=pytest.fail,
        )
        self.service = EngineService(parts, self.transfers)

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value; 0.0 when it was never counted."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def transfer_ends(
    engine: Engine,
    metrics: TransferMetrics,
    *,
    sink: object = None,
    source: object = None,
    layout: Layout,
    limits: PullLimits = PULL_LIMITS,
) -> TransferEnds:
    """Of a worker whose sink and source do what the test says."""
    uses = TransportUses()
    lease_metrics = LeaseMetrics(metrics, uses)
    fetch_metrics, quarantine = FetchMetrics(metrics, uses), Quarantine(engine, metrics)
    ours, theirs = cast(Sink, sink), cast(Source, source)
    pulls = PrefixPulls(
        sink=ours,
        engine=engine,
        limits=limits,
        block_tokens=layout.block_tokens,
        metrics=fetch_metrics,
        quarantine=quarantine,
    )
    loans = PrefixLoans(
        engine, block_tokens=layout.block_tokens, metrics=metrics, lease_metrics=lease_metrics
    )
    return TransferEnds(
        sink=ours,
        source=theirs,
        pulls=pulls,
        loans=loans,
        uses=uses,
        metrics=fetch_metrics,
        quarantine=quarantine,
        canaries=CanaryFetches(
            sink=ours, engine=engine, block_tokens=layout.block_tokens, quarantine=quarantine
        ),
    )


def small_tokenizer() -> Tokenizer:
    return Tokenizer(
        byte_level_tokenizer(),
        chat_template=None,
        eos_token_ids=(),
        vocab_size=VOCAB_SIZE,
        max_context_tokens=64,
    )
