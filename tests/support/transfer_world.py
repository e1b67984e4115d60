"""A source's pool, a sink's pool, and transfers between them as values: no thread, socket or clock.

What `kvtransfer.source.leases`, `kvtransfer.sink.fetches` and the streams do around the two state
tables, as little of it as there is to do. A block's bytes are one number, so a wrong byte is
another number. The test decides what happens next; this world only keeps the books, and fails when
they are off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.pieces import pieces

from kvtransfer.messages import FetchId
from kvtransfer.sink.fetch import (
    End,
    Fetch,
    FetchStage,
    FetchStep,
    SendBorrow,
    SendCancel,
    SendFetch,
    SendRelease,
)
from kvtransfer.source.lease import FetchRefused, Lease
from protocol.errors import TransferError
from protocol.ids import LeaseId

BLOCK_TOKENS = 4
BLOCK_BYTES = 64
POOL_BLOCKS = 12
NOTE = b"note"
GARBAGE = 0


@dataclass(eq=False)
class Chunked:
    """Pieces on their way, described as they were when they left."""

    attempt: int
    pieces_P: NDArray[Any]
    blocks: list[int]


@dataclass(eq=False)
class Noted:
    attempt: int


@dataclass(eq=False)
class Loaned:
    """The source's answer to an asking fetch, on the control link."""


Word = Chunked | Noted | Loaned


@dataclass(eq=False)
class Write:
    """Someone who writes into slots."""

    chunk: Chunked
    places_P: NDArray[np.intp]
    slots: list[int]
    num_copied: int = 0


@dataclass(eq=False)
class Transfer:
    """One lease, its fetch, and what is between them."""

    lease: Lease
    fetch: Fetch
    lent: list[int]
    slots: dict[int, int]
    """Index to sink block."""
    stoppable: bool
    """Whether its stream can make a writer stop at once."""
    due: NDArray[Any]
    """The pieces that are wanted."""
    truth: dict[int, int] = field(default_factory=dict)
    """Index to the bytes the prefill wrote."""
    attached: bool = False
    to_source: list[FetchStep] = field(default_factory=list)
    refusals: list[TransferError] = field(default_factory=list)
    answers: list[Loaned] = field(default_factory=list)
    stream: list[Word] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    num_ends: int = 0
    lent_back: bool = False
    adopted: dict[int, int] = field(default_factory=dict)
    """Sink block to the bytes it must keep, of what landed or was verified."""


class World:
    def __init__(self) -> None:
        self.transfers: list[Transfer] = []
        self.free_slots = set(range(POOL_BLOCKS))
        self.free_blocks = set(range(POOL_BLOCKS))
        self.bytes_there = [GARBAGE] * POOL_BLOCKS
        self.bytes_here = [GARBAGE] * POOL_BLOCKS
        self.generations = [0] * POOL_BLOCKS
        self._serial = count(1)

    # -- the source -----------------------------------------------------------------------

    def begin(
        self, num_tokens: int, wanted: Sequence[bool], *, stoppable: bool, asks: bool = False
    ) -> Transfer:
        """A lease on new blocks, and a fetch of those wanted; or one that `asks` for a lease on
        what is cached, which here is not yet given to it."""
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        lent = [self.free_blocks.pop() for _ in range(num_blocks)]
        for block in lent:
            self.generations[block] += 1
            self.bytes_there[block] = GARBAGE
        indices = [index for index in range(num_blocks) if wanted[index]]
        slots = {index: self.free_slots.pop() for index in indices}
        number = next(self._serial)
        lease = Lease(
            lease_id=LeaseId(number), block_ids=lent, num_tokens=num_tokens,
            generations=[self.generations[block] for block in lent], block_tokens=BLOCK_TOKENS,
        )  # fmt: skip
        due = _described(indices, list(slots.values()), num_tokens)
        lease_id = None if asks else LeaseId(number)
        fetch = Fetch(
            fetch_id=FetchId(number), lease_id=lease_id, pieces_S=due[:0] if asks else due
        )
        transfer = Transfer(lease, fetch, lent, slots, stoppable, due)
        self.transfers.append(transfer)
        if asks:  # what a cache has is written
            self.finish(transfer)
        return transfer

    def compute(self, transfer: Transfer, num_tokens: int) -> None:
        """The prefill writes up to so many tokens, and says so."""
        lease = transfer.lease
        if lease.is_over:
            return
        lease.publish(num_tokens)
        written = num_tokens // BLOCK_TOKENS
        if num_tokens == lease.num_tokens:
            written = len(transfer.lent)
        for index in range(len(transfer.truth), written):
            transfer.truth[index] = self.bytes_there[transfer.lent[index]] = next(self._serial)

    def finish(self, transfer: Transfer) -> None:
        self.compute(transfer, transfer.lease.num_tokens)
        if not transfer.lease.is_over:
            transfer.lease.finish(NOTE)

    def give_away(self, transfer: Transfer) -> None:
        """Blocks of a lease that is over are computed on for someone else."""
        if transfer.lease.is_over and not transfer.lent_back:
            transfer.lent_back = True
            for block in transfer.lent:
                self.generations[block] += 1
                self.bytes_there[block] = next(self._serial)
            self.free_blocks |= set(transfer.lent)

    def tell_source(self, transfer: Transfer, word: FetchStep) -> None:
        lease = transfer.lease
        if isinstance(word, SendBorrow):
            transfer.answers.append(Loaned())
            return
        if lease.is_over:
            transfer.refusals.append(TransferError("the lease has ended"))
            return
        match word:
            case SendFetch(attempt=attempt, indices=indices, slots=slots):
                try:
                    lease.accept_fetch(
                        fetch_id=transfer.fetch.id, attempt=attempt, indices=indices,
                        slots=slots, block_tokens=BLOCK_TOKENS,
                    )  # fmt: skip
                except FetchRefused as error:
                    transfer.refusals.append(TransferError(str(error)))
            case SendRelease() | SendCancel():
                lease.release()

    def send(self, transfer: Transfer, limit: int) -> None:
        """A chunk of what is ready, and the note when it is due."""
        lease = transfer.lease
        if lease.is_over or not transfer.attached:
            return
        indices_S, slots_S = lease.wanted
        taken = lease.take_ready(limit)
        indices, slots = indices_S[taken].tolist(), slots_S[taken].tolist()
        if indices:
            transfer.stream.append(self._describe(transfer, indices, slots))
        if lease.take_note() is not None:
            transfer.stream.append(Noted(lease.attempt))

    def _describe(self, transfer: Transfer, indices: list[int], slots: list[int]) -> Chunked:
        blocks = [transfer.lent[index] for index in indices]
        pieces_P = _described(indices, slots, transfer.lease.num_tokens)
        pieces_P["generation"] = [self.generations[block] for block in blocks]
        pieces_P["checksum"] = [self.bytes_there[block] for block in blocks]
        ends = pieces_P["token_start"] + pieces_P["token_count"]
        assert (ends <= transfer.lease.num_written).all(), "sent before it was written"
        return Chunked(transfer.lease.attempt, pieces_P, blocks)

    # -- the sink -------------------------------------------------------------------------

    def attach(self, transfer: Transfer) -> None:
        """A stream is up: ask for what is missing."""
        transfer.attached = True
        self.follow(transfer, transfer.fetch.start())

    def hear(self, transfer: Transfer, word: Word) -> None:
        match word:
            case Noted(attempt=attempt):
                steps = transfer.fetch.note_arrived(attempt=attempt, note=NOTE)
                self.follow(transfer, steps)
            case Chunked():
                self._begin_write(transfer, word)
            case Loaned():
                self._accept_loan(transfer)

    def _accept_loan(self, transfer: Transfer) -> None:
        """As `kvtransfer.sink.fetches`: what nobody waits for any more is given back."""
        fetch, lease = transfer.fetch, transfer.lease
        if fetch.stage is not FetchStage.ASKING:
            if fetch.is_over and not lease.is_over:
                lease.release()
            return
        fetch.accept_loan(lease_id=lease.id, pieces_S=transfer.due)
        if transfer.attached:
            self.follow(transfer, fetch.start())

    def _begin_write(self, transfer: Transfer, word: Chunked) -> None:
        try:
            places_P = transfer.fetch.begin_write(attempt=word.attempt, pieces_P=word.pieces_P)
        except TransferError as error:
            self.follow(transfer, transfer.fetch.fail(error))
            return
        if places_P is not None:
            slots = [transfer.slots[index] for index in word.pieces_P["index"].tolist()]
            assert slots == word.pieces_P["slot"].tolist(), "a slot nobody named"
            transfer.writes.append(Write(word, places_P, slots))

    def copy(self, write: Write, num_pieces: int) -> None:
        """The writer goes on by so many pieces, reading what is there now."""
        blocks = list(zip(write.chunk.blocks, write.slots, strict=True))
        for block, slot in blocks[write.num_copied : write.num_copied + num_pieces]:
            assert slot not in self.free_slots, "written into a slot that is someone else's"
            self.bytes_here[slot] = self.bytes_there[block]
        write.num_copied = min(len(blocks), write.num_copied + num_pieces)

    def end_write(self, transfer: Transfer, write: Write) -> None:
        """The writer is done, or was cut short: what it left is verified."""
        transfer.writes.remove(write)
        was_ended = transfer.fetch.ended
        said = zip(
            write.slots, write.chunk.blocks, write.chunk.pieces_P["checksum"].tolist(),
            write.chunk.pieces_P["generation"].tolist(), strict=True,
        )  # fmt: skip
        right = [
            self.bytes_here[slot] == checksum and self.generations[block] == generation
            for slot, block, checksum, generation in said
        ]
        broken = "" if all(right) else "another checksum"
        steps = transfer.fetch.end_write(write.places_P, right_P=np.array(right), broken=broken)
        self._settle(transfer, write, steps, was_ended)

    def stop_write(self, transfer: Transfer, write: Write) -> None:
        """The writer has stopped before it was done."""
        transfer.writes.remove(write)
        was_ended = transfer.fetch.ended
        steps = transfer.fetch.stop_write(write.places_P)
        self._settle(transfer, write, steps, was_ended)

    def _settle(
        self, transfer: Transfer, write: Write, steps: list[FetchStep], was_ended: bool
    ) -> None:
        if was_ended:
            assert not steps, "an ended fetch asks for something"
            self._return_slots(write.slots)  # they were quarantined
        else:
            self.follow(transfer, steps)

    def break_stream(self, transfer: Transfer) -> None:
        """What was on it is lost; the fetch goes on unless a writer cannot be stopped."""
        transfer.attached = False
        transfer.stream.clear()
        if transfer.stoppable:
            self._stop_writers(transfer)
        elif transfer.writes:
            self.follow(transfer, transfer.fetch.fail(TransferError("a writer cannot be stopped")))

    def follow(self, transfer: Transfer, steps: list[FetchStep]) -> None:
        for step in steps:
            if isinstance(step, End):
                self._end(transfer)
            else:
                transfer.to_source.append(step)
        if transfer.fetch.is_over and not transfer.fetch.ended:
            if transfer.stoppable:
                self._stop_writers(transfer)
            self.follow(transfer, transfer.fetch.abandon())

    def _stop_writers(self, transfer: Transfer) -> None:
        while transfer.writes:
            self.stop_write(transfer, transfer.writes[0])

    def _end(self, transfer: Transfer) -> None:
        """The end is told: what landed is adopted, what has no writer returns to the pool."""
        transfer.num_ends += 1
        fetch = transfer.fetch
        written = {slot for write in transfer.writes for slot in write.slots}
        assert written == set(fetch.slots_S[fetch.writing_S].tolist())
        for index in fetch.verified:
            slot = transfer.slots[index]
            assert self.bytes_here[slot] == transfer.truth[index], "wrong bytes were verified"
            transfer.adopted[slot] = transfer.truth[index]
        if fetch.stage is FetchStage.LANDED:
            assert len(fetch.indices_S) == len(transfer.slots), "landed before it was lent all"
            assert fetch.note == NOTE and set(transfer.adopted) == set(transfer.slots.values())
        self._return_slots(set(transfer.slots.values()) - written - set(transfer.adopted))

    def release(self, transfer: Transfer) -> None:
        """The worker is done with the blocks it adopted."""
        self._return_slots(transfer.adopted)
        transfer.adopted = {}

    def _return_slots(self, slots: Sequence[int] | set[int] | dict[int, int]) -> None:
        for slot in slots:
            assert slot not in self.free_slots, f"slot {slot} returned twice"
            self.free_slots.add(slot)

    # -- the books ------------------------------------------------------------------------

    def check(self) -> None:
        writers = [slot for t in self.transfers for w in t.writes for slot in w.slots]
        assert len(writers) == len(set(writers)), "a slot has two writers"
        assert not self.free_slots & set(writers), "a free slot has a writer"
        for transfer in self.transfers:
            fetch = transfer.fetch
            assert transfer.num_ends == int(fetch.ended) == int(fetch.is_over)
            assert fetch.num_writing == sum(len(write.slots) for write in transfer.writes)
            for slot, content in transfer.adopted.items():
                assert self.bytes_here[slot] == content, "an adopted block was written over"


def _described(indices: list[int], slots: list[int], num_tokens: int) -> NDArray[Any]:
    return pieces(
        indices, slots, block_tokens=BLOCK_TOKENS, num_tokens=num_tokens, block_bytes=BLOCK_BYTES
    )
