"""In which order a prefill worker speaks to the router and to whoever fetches."""

from unittest.mock import create_autospec

import msgspec
import pytest
from support.services import ROUTER, ServiceBench, transfer_ends
from support.words import LAYOUT, prefill, sampling

from engine.batch import SampledToken
from engine.loop import Engine
from engine.observer import SequenceToken
from engine.sequence import Complete, Fail, HandOver, SequenceUsage, Verdict
from kvtransfer.endings import LeaseEnd, LeaseEndReason
from kvtransfer.source.source import Source
from prefill_worker.lent import LentLeases
from prefill_worker.transfers import PrefillTransfers
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.messages import Step, Ticket
from protocol.process.metrics import WorkerMetrics
from worker.requests import RequestTable
from worker.transfers.lease_metrics import LeaseMetrics

LEASE = LeaseId(7)
USAGE = SequenceUsage(num_tokens=1, cached_tokens=0, queued_s=0.0, prefill_s=0.0, decode_s=0.0)


class Bench(ServiceBench):
    """A service with one admitted request, whose first token is said."""

    def __init__(self) -> None:
        self.source = create_autospec(Source, instance=True)
        self.source.open_lease.return_value = Ticket(
            worker=WorkerId("prefill-0"),
            epoch=new_epoch(),
            lease=LEASE,
            address="",
            layout=LAYOUT,
            compat="",
            num_tokens=3,
        )
        super().__init__(self._transfers)
        told = self.story.told
        self.source.fail.side_effect = lambda lease, why: told.append(f"fail: {why}")
        self.source.finish.side_effect = lambda lease, note, **_: told.append("finish")
        message = msgspec.structs.replace(prefill(), sampling=sampling(max_tokens=1))
        self.service.accept_request(ROUTER, message)
        self.sequence = self.engine.submitted[-1].id
        self.observer.admitted(self.sequence, (0,), (0,), 0, 0.0)
        told.clear()
        token = SampledToken(token_id=9)
        self.observer.step([SequenceToken(id=self.sequence, index=0, token=token)])

    def _transfers(
        self, engine: Engine, requests: RequestTable, metrics: WorkerMetrics
    ) -> PrefillTransfers:
        ends = transfer_ends(engine, metrics.transfer, source=self.source, layout=LAYOUT)
        self.lent = LentLeases(engine, metrics.transfer, LeaseMetrics(metrics.transfer, ends.uses))
        return PrefillTransfers(ends=ends, lent=self.lent, engine=engine, requests=requests)

    def end(self, verdict: Verdict) -> list[str]:
        """What was told after the token, in order."""
        self.observer.ended(self.sequence, verdict, USAGE)
        self.observer.settled()
        kinds = [told if isinstance(told, str) else type(told).__name__ for told in self.story.told]
        assert Step.__name__ in kinds
        return kinds


def test_a_request_that_its_first_token_ends_is_not_lost_to_its_fetcher() -> None:
    """The router hears of it and aborts the decode worker, which gives the lease back."""
    bench = Bench()
    assert bench.end(Complete("length")) == ["Step", "Finished"]
    assert bench.transfers.moving() and not bench.service.is_idle()
    bench.lent.ended(
        LeaseEnd(
            lease=LEASE,
            reason="released",
            detail="",
            transport="",
            peer=WorkerId(""),
            num_blocks=0,
            num_bytes=0,
        )
    )
    assert bench.service.is_idle()


@pytest.mark.parametrize("reason", ["released", "expired"])
def test_what_was_lent_to_whom_is_counted_and_shown(reason: LeaseEndReason) -> None:
    bench = Bench()
    sample = bench.metrics.registry.get_sample_value
    assert sample("baton_worker_kv_leases") == 1
    bench.lent.ended(
        LeaseEnd(
            lease=LEASE,
            reason=reason,
            detail="",
            transport="tcp",
            peer=WorkerId("decode-0"),
            num_blocks=2,
            num_bytes=64,
        )
    )
    assert sample("baton_worker_kv_leases") == 0
    assert sample("baton_worker_kv_lease_ends_total", {"reason": reason}) == 1
    assert sample("baton_worker_kv_lent_bytes_total", {"transport": "tcp"}) == 64
    uses = bench.service.beat("ready").transports
    landed = [("tcp", "decode-0", 1, 64)] if reason == "released" else []
    assert [(use.name, use.peer, use.fetches, use.bytes) for use in uses] == landed


def test_the_router_hears_of_a_failure_before_the_fetcher_does() -> None:
    failed = Fail("internal", "no number", final=True)
    assert Bench().end(failed) == ["Step", "Failed", "fail: internal"]


@pytest.mark.parametrize("final", [False, True])
def test_a_failure_that_any_worker_would_have_is_not_worth_a_retry(final: bool) -> None:
    bench = Bench()
    bench.end(Fail("internal", "no number", final=final))
    assert [told.retryable for told in bench.story.told if hasattr(told, "retryable")] == [
        not final
    ]


def test_the_fetcher_is_told_the_token_with_the_last_block() -> None:
    told = Bench().end(HandOver())
    assert sorted(told) == ["PrefillDone", "Step", "finish"]
