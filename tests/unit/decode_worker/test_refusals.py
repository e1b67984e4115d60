"""What a decode worker keeps alive, and what it lets go of."""

from unittest.mock import create_autospec

import msgspec
import pytest
from support.services import ROUTER, VOCAB_SIZE, ServiceBench, transfer_ends
from support.words import LAYOUT, decode

from decode_worker.transfers import DecodeTransfers
from engine.loop import Engine
from kvtransfer.sink.sink import Sink
from protocol.ids import LeaseId, RequestId, WorkerId, new_epoch
from protocol.messages import Decode, Failed, Sampling, Ticket
from protocol.process.metrics import WorkerMetrics
from worker.requests import RequestTable


def ticket(lease: int) -> Ticket:
    return Ticket(
        worker=WorkerId("prefill-0"), epoch=new_epoch(), lease=LeaseId(lease), address="",
        layout=LAYOUT, compat="", num_tokens=3,
    )  # fmt: skip


class Bench(ServiceBench):
    def __init__(self) -> None:
        self.sink = create_autospec(Sink, instance=True)
        super().__init__(self._transfers)

    def _transfers(
        self, engine: Engine, requests: RequestTable, metrics: WorkerMetrics
    ) -> DecodeTransfers:
        ends = transfer_ends(engine, metrics.transfer, sink=self.sink, layout=LAYOUT)
        return DecodeTransfers(
            ends=ends, layout=LAYOUT, vocab_size=VOCAB_SIZE, engine=engine, requests=requests
        )


def test_the_lease_of_a_repeated_request_is_not_held() -> None:
    bench = Bench()
    first, again = ticket(1), ticket(2)
    for given in (first, again):
        bench.service.accept_request(ROUTER, msgspec.structs.replace(decode(), ticket=given))
    bench.sink.hold.assert_called_once_with(first)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"generated": (-1,)}, "generated"),
        ({"generated": (VOCAB_SIZE,)}, "generated"),
        ({"sampling": Sampling(seed=1, max_tokens=8, stop=("",))}, "stop: "),
        ({"sampling": Sampling(seed=1, max_tokens=8, stop_token_ids=(-1,))}, "stop_token_ids"),
    ],
)
def test_numbers_that_cannot_be_refuse_one_request_and_free_its_lease(
    changes: dict[str, object], what: str
) -> None:
    bench = Bench()
    given = ticket(1)
    message: Decode = msgspec.structs.replace(decode(), ticket=given, **changes)
    bench.service.accept_request(ROUTER, message)
    (answer,) = bench.story.told
    assert isinstance(answer, Failed) and not answer.retryable
    assert answer.message.startswith(what)
    bench.sink.hold.assert_not_called()
    bench.sink.drop.assert_called_once_with(given, reason="the request was refused")
    assert bench.service.is_idle()


def test_a_beat_counts_what_the_engine_has_not_looked_at_yet() -> None:
    """It may be in the middle of a long step."""
    bench = Bench()
    bench.service.accept_request(ROUTER, decode())
    fetched = msgspec.structs.replace(decode(), request=RequestId("r2"), ticket=ticket(1))
    bench.service.accept_request(ROUTER, fetched)
    load = bench.service.beat("ready").load
    assert (load.waiting, load.waiting_tokens) == (2, len(decode().token_ids))
    bench.engine.num_counted = 2
    assert bench.service.beat("ready").load.waiting == 0
