"""Thousands of transfers, a fifth of them broken off, and what the process holds as they go by.

`make soak` runs 20,000 and appends the curve to bench/results/kvtransfer_soak.jsonl; the tests
run a shorter one. Both ends live in this process,
so whatever either leaves behind is seen. Every block is filled afresh for its lease and compared
where it lands.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from support.census import Census, resident_bytes, settled
from support.eventually import eventually
from support.fetching import TimedEnds, TimedOutcome, fetch
from support.transfer import Borrower, Lender, fill

from bench.record import record
from kvtransfer.endings import Aborted, Landed, Lost
from protocol.messages import Ticket

IN_FLIGHT = 8
LEASE_BLOCKS = 4
ABORTED_SHARE = 0.2
BREAKS = ("cancelled", "failed", "dropped", "late")
"""By the sink, by the source, before it was fetched, by its deadline."""
RESTART_EVERY = 500
"""After so many transfers both sinks are closed and made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was held after so many transfers, everything at rest."""

    transfers: int
    resident_mib: float
    held: Census


@dataclass
class Transfer:
    number: int
    ticket: Ticket
    lent: list[int]
    slots: list[int]
    broken: str
    """How it is broken off; empty when it is not."""
    outcome: TimedOutcome | None = None


class Soak:
    def __init__(self, seed: str) -> None:
        self.endings: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._ends = TimedEnds()
        self._lender = Lender(ends=self._ends, lease_ttl_s=60.0)
        self._lendable = list(range(self._lender.num_blocks))
        self._slots = list(range(self._lender.num_blocks))
        self._borrowers: list[Borrower] = []

    def run(self, num_transfers: int, *, sample_every: int) -> Iterator[Sample]:
        """Yields a sample after every so many transfers."""
        for done in range(0, num_transfers, IN_FLIGHT):
            if done % RESTART_EVERY < IN_FLIGHT:
                self._restart()
            self._together([self._begin(done + i) for i in range(IN_FLIGHT)])
            if (done + IN_FLIGHT) % sample_every < IN_FLIGHT:
                yield self._sample(done + IN_FLIGHT)

    def close(self) -> None:
        for borrower in self._borrowers:
            borrower.close()
        self._lender.close()

    def _restart(self) -> None:
        for borrower in self._borrowers:
            borrower.close()
        self._borrowers = [Borrower(transports=(name,)) for name in ("shm", "tcp")]

    def _begin(self, number: int) -> Transfer:
        lent = [self._lendable.pop() for _ in range(LEASE_BLOCKS)]
        for block in lent:
            self._lender.memory.generations[block] += 1
            fill(self._lender.memory, block, salt=number)
        broken = self._chance.random() < ABORTED_SHARE
        transfer = Transfer(
            number, self._lender.lend(lent), lent,
            [self._slots.pop() for _ in range(LEASE_BLOCKS)],
            self._chance.choice(BREAKS) if broken else "",
        )  # fmt: skip
        if transfer.broken != "dropped":
            deadline_s = 0.005 if transfer.broken == "late" else 60.0
            transfer.outcome = fetch(
                self._borrower(transfer), transfer.ticket, transfer.slots, deadline_s=deadline_s
            )
        return transfer

    def _borrower(self, transfer: Transfer) -> Borrower:
        return self._borrowers[transfer.number % len(self._borrowers)]

    def _together(self, transfers: list[Transfer]) -> None:
        for transfer in self._chance.sample(transfers, len(transfers)):
            self._write(transfer)
        for transfer in transfers:
            self._end(transfer)

    def _write(self, transfer: Transfer) -> None:
        source, ticket = self._lender.source, transfer.ticket
        if not transfer.broken:
            self._lender.write_all(ticket)
            return
        source.publish(ticket.lease, self._chance.randrange(ticket.num_tokens))
        match transfer.broken:
            case "cancelled":
                assert transfer.outcome is not None
                self._borrower(transfer).sink.cancel(transfer.outcome.fetch)
            case "failed":
                source.fail(ticket.lease, "preempted")
            case "dropped":
                self._borrower(transfer).sink.drop(ticket, reason="no room")

    def _end(self, transfer: Transfer) -> None:
        """Both ends have ended, rightly; the blocks go back to their pools."""
        lease = transfer.ticket.lease
        eventually(lambda: lease in self._ends.told, what=f"the lease of {transfer}")
        end = self._ends.told.pop(lease)
        assert end.reason == ("failed" if transfer.broken == "failed" else "released"), end
        self.endings[self._told(transfer)] += 1
        self._lendable += transfer.lent
        self._slots += transfer.slots
        self._ends.told_s.clear()

    def _told(self, transfer: Transfer) -> str:
        if transfer.outcome is None:
            return "dropped"
        end = transfer.outcome.end
        wanted = {"": Landed, "cancelled": Aborted}.get(transfer.broken, Lost)
        assert isinstance(end, wanted), (transfer, end)
        if isinstance(end, Landed):
            theirs, ours = self._lender.memory, self._borrower(transfer).memory
            for lent, slot in zip(transfer.lent, transfer.slots, strict=True):
                assert ours.block(slot) == theirs.block(lent), transfer
        return transfer.broken or "landed"

    def _sample(self, transfers: int) -> Sample:
        while not self._ends.empty():
            self._ends.get_nowait()
        assert self._lender.source.num_leases == 0 and not self._ends.twice
        assert all(borrower.sink.num_fetches == 0 for borrower in self._borrowers)
        assert len(self._slots) == len(self._lendable) == self._lender.num_blocks
        held = settled()
        mib = round(resident_bytes() / (1 << 20), 2)
        return Sample(transfers=transfers, resident_mib=mib, held=held)


def curve(samples: list[Sample]) -> list[list[float]]:
    """Transfers, resident MiB, descriptors, threads, mapped segments of each sample."""
    rows = []
    for sample in samples:
        held = Counter(sample.held)
        threads, segments = held.pop("threads"), held.pop("mapped segments")
        rows.append([sample.transfers, sample.resident_mib, held.total(), threads, segments])
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--transfers", type=int, default=20_000)
    options.add_argument("--seed", default="soak")
    chosen = options.parse_args()
    begun_s = time.monotonic()
    with closing(Soak(chosen.seed)) as soak:
        samples = list(soak.run(chosen.transfers, sample_every=max(500, chosen.transfers // 20)))
    record(
        "kvtransfer_soak",
        conditions={
            "transfers": chosen.transfers, "seed": chosen.seed, "in_flight": IN_FLIGHT,
            "aborted_share": ABORTED_SHARE, "sinks_restarted_every": RESTART_EVERY,
        },
        results={
            "took_s": round(time.monotonic() - begun_s, 1),
            "endings": dict(soak.endings),
            "columns": ["transfers", "resident_mib", "descriptors", "threads", "segments"],
            "curve": curve(samples),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
