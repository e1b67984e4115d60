"""Loans between a source and an engine that do what the test says."""

from array import array
from unittest.mock import create_autospec

from support.services import ServiceBench, transfer_ends
from support.words import LAYOUT

from decode_worker.transfers import DecodeTransfers
from engine.kvcache.loans import LentPrefix
from engine.loop import Engine
from kvtransfer.endings import LeaseEnd
from kvtransfer.source.borrowing import AskedLoan, BorrowId
from kvtransfer.source.source import Source
from protocol.errors import CapacityError
from protocol.ids import BlockHash, LeaseId, WorkerId
from protocol.process.metrics import WorkerMetrics
from worker.requests import RequestTable

SEED, LAST = BlockHash(b"s" * 16), BlockHash(b"l" * 16)
LEASE = LeaseId(8)


class Bench(ServiceBench):
    """One prefix is asked for."""

    def __init__(self) -> None:
        self.source = create_autospec(Source, instance=True)
        self.source.lend.return_value = LEASE
        super().__init__(self._transfers)
        asked = AskedLoan(id=BorrowId(5), seed=SEED, token_ids=array("I", [1, 2, 3]))
        self.loans.answer(self.source, asked)
        (self.prefix,) = self.engine.asked

    def _transfers(
        self, engine: Engine, requests: RequestTable, metrics: WorkerMetrics
    ) -> DecodeTransfers:
        ends = transfer_ends(engine, metrics.transfer, source=self.source, layout=LAYOUT)
        self.loans = ends.loans
        return DecodeTransfers(
            ends=ends, layout=LAYOUT, vocab_size=9, engine=engine, requests=requests
        )

    def end(self) -> bool:
        return self.loans.ended(
            LeaseEnd(
                lease=LEASE, reason="released", detail="landed", transport="tcp",
                peer=WorkerId("decode-1"), num_blocks=2, num_bytes=64,
            )
        )  # fmt: skip


def test_what_the_engine_holds_is_lent_until_the_lease_has_ended() -> None:
    bench = Bench()
    assert (bench.prefix.seed, list(bench.prefix.token_ids)) == (SEED, [1, 2, 3])
    bench.prefix.tell(LentPrefix(block_ids=(4, 6), last=LAST))
    bench.source.lend.assert_called_once_with(
        BorrowId(5), block_ids=(4, 6), num_tokens=2 * LAYOUT.block_tokens, last=LAST
    )
    assert not bench.transfers.is_idle() and not bench.engine.loans_ended
    assert bench.sample("baton_worker_loans") == 1
    assert bench.end()
    assert bench.engine.loans_ended == [bench.prefix.loan] and bench.transfers.is_idle()
    assert bench.sample("baton_worker_loans") == 0
    assert bench.sample("baton_worker_loans_asked_total", answer="lent") == 1
    assert bench.sample("baton_worker_kv_lent_bytes_total", transport="tcp") == 64
    assert not bench.end(), "a lease on no loan"


def test_nothing_is_lent_of_what_is_not_cached() -> None:
    bench = Bench()
    bench.prefix.tell(LentPrefix(last=SEED))
    bench.source.lend.assert_not_called()
    bench.source.refuse_loan.assert_called_once()
    assert bench.transfers.is_idle()
    assert bench.sample("baton_worker_loans_asked_total", answer="nothing") == 1


def test_a_source_that_takes_no_lease_leaves_no_block_held() -> None:
    bench = Bench()
    bench.source.lend.side_effect = CapacityError("the source takes no more leases")
    bench.prefix.tell(LentPrefix(block_ids=(4,), last=LAST))
    assert bench.engine.loans_ended == [bench.prefix.loan] and bench.transfers.is_idle()
    bench.source.refuse_loan.assert_called_once()
