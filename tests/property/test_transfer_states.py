"""Both state tables of a fetch against a network that loses, repeats, reorders and spoils.

Whatever happens: a slot has at most one writer, nothing is adopted unless complete and verified,
an end is told once and only when nobody writes, and in the end both sides are at rest.
"""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtransfer.messages import Descriptor, FetchId, Slot
from kvtransfer.session import (
    End,
    Fetch,
    FetchStage,
    FetchStep,
    LeaseStage,
    Lending,
    Refusal,
    SendCancel,
    SendFetch,
    SendRelease,
)
from protocol.errors import TransferError
from protocol.ids import LeaseId

BLOCK_TOKENS = 4
BLOCK_BYTES = 64
POOL_OFFSET = 100
"""A slot's pool block is its index plus this."""


RARELY = st.integers(0, 19)
"""The event happens on 0, so that most runs get further than a few words."""


@dataclass
class Frame:
    attempt: int
    block: Descriptor


@dataclass
class Write:
    index: int
    into: int


@dataclass
class Note:
    attempt: int
    note: bytes


ToSource = SendFetch | SendRelease | SendCancel
ToSink = Frame | Note | TransferError


class Transfers(RuleBasedStateMachine):
    @initialize(
        num_tokens=st.integers(1, 24),
        wanted=st.sets(st.integers(0, 5)),
        started=st.booleans(),
        finished=st.booleans(),
    )
    def begin(self, num_tokens: int, wanted: set[int], started: bool, finished: bool) -> None:
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        self.indices = sorted(index for index in wanted if index < num_blocks)
        self.lending = Lending(
            lease=LeaseId(1), block_ids=range(num_blocks), generations=[7] * num_blocks,
            num_tokens=num_tokens, block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES,
        )  # fmt: skip
        self.fetch = Fetch(
            fetch=FetchId(1), lease=LeaseId(1),
            slots=[Slot(index, POOL_OFFSET + index) for index in self.indices],
            num_tokens=num_tokens, block_tokens=BLOCK_TOKENS, block_bytes=BLOCK_BYTES,
        )  # fmt: skip
        self.to_source: list[ToSource] = []
        self.to_sink: list[ToSink] = []
        self.writes: list[Write] = []
        self.good: set[int] = set()
        """Pool blocks that hold right bytes."""
        self.num_ends = 0
        self.started = started
        if finished:
            self.lending.finish(b"note")
        if started:
            self.follow(self.fetch.start())

    def follow(self, steps: list[FetchStep]) -> None:
        for place, step in enumerate(steps):
            if isinstance(step, End):
                assert place == len(steps) - 1 and not self.writes
                self.num_ends += 1
            else:
                self.to_source.append(step)

    # -- the source -----------------------------------------------------------------------

    @rule(share=st.floats(0, 1))
    def the_engine_writes(self, share: float) -> None:
        self.lending.publish(int(share * self.lending.num_tokens))

    @precondition(lambda self: self.lending.note is None)
    @rule()
    def the_engine_finishes(self) -> None:
        self.lending.finish(b"note")

    @precondition(lambda self: self.to_source)
    @rule(data=st.data(), again=st.booleans())
    def the_source_hears(self, data: st.DataObject, again: bool) -> None:
        """In any order; a word may come again."""
        place = data.draw(st.integers(0, len(self.to_source) - 1))
        word = self.to_source[place] if again else self.to_source.pop(place)
        self.tell_source(word)

    def tell_source(self, word: ToSource) -> None:
        if self.lending.over:
            self.to_sink.append(TransferError("the lease has ended"))
            return
        match word:
            case SendFetch(attempt=attempt, slots=slots):
                try:
                    self.lending.fetched(fetch=FetchId(1), attempt=attempt, slots=slots)
                except Refusal as error:
                    self.to_sink.append(TransferError(str(error)))
            case SendRelease() | SendCancel():
                self.lending.release()

    @precondition(lambda self: not self.lending.over)
    @rule(limit=st.integers(1, 4))
    def the_source_sends(self, limit: int) -> None:
        self.send(limit)

    def send(self, limit: int) -> None:
        for index in self.lending.take_ready(limit):
            written = self.lending.num_written
            block = self.lending.describe(index, 0)
            assert block.token_start + block.token_count <= written
            self.to_sink.append(Frame(self.lending.attempt, block))
        note = self.lending.take_note()
        if note is not None:
            self.to_sink.append(Note(self.lending.attempt, note))

    @precondition(lambda self: not self.lending.over)
    @rule(chance=RARELY)
    def the_lease_runs_out(self, chance: int) -> None:
        if chance:
            return
        self.lending.lapse()
        self.to_sink.append(TransferError("the lease ran out"))

    # -- the network ----------------------------------------------------------------------

    @precondition(lambda self: self.to_source)
    @rule(data=st.data())
    def a_word_to_the_source_is_lost(self, data: st.DataObject) -> None:
        self.to_source.pop(data.draw(st.integers(0, len(self.to_source) - 1)))

    @precondition(lambda self: self.to_sink)
    @rule(data=st.data())
    def a_word_to_the_sink_is_lost(self, data: st.DataObject) -> None:
        self.to_sink.pop(data.draw(st.integers(0, len(self.to_sink) - 1)))

    # -- the sink -------------------------------------------------------------------------

    @precondition(lambda self: not self.started)
    @rule()
    def the_link_opens(self) -> None:
        self.started = True
        self.follow(self.fetch.start())

    @precondition(lambda self: self.to_sink)
    @rule(data=st.data(), again=st.booleans())
    def the_sink_hears(self, data: st.DataObject, again: bool) -> None:
        """In any order; a word may come again."""
        place = data.draw(st.integers(0, len(self.to_sink) - 1))
        word = self.to_sink[place] if again else self.to_sink.pop(place)
        self.tell_sink(word)

    def tell_sink(self, word: ToSink) -> None:
        match word:
            case Note(attempt=attempt, note=note):
                self.follow(self.fetch.note_arrived(attempt=attempt, note=note))
            case Frame(attempt=attempt, block=block):
                into = self.fetch.begin_write(attempt=attempt, block=block)
                if into is not None:
                    assert not self.fetch.over and attempt == self.fetch.attempt
                    assert into == POOL_OFFSET + block.index and into not in self.good
                    self.good.discard(into)
                    self.writes.append(Write(block.index, into))
            case TransferError():
                self.follow(self.fetch.fail(word))

    @precondition(lambda self: self.writes)
    @rule(data=st.data(), broken=st.sampled_from(["", "", "", "checksum", "truncated"]))
    def a_writer_stops(self, data: st.DataObject, broken: str) -> None:
        write = self.writes.pop(data.draw(st.integers(0, len(self.writes) - 1)))
        self.stop_writer(write, broken)

    def stop_writer(self, write: Write, broken: str) -> None:
        if not broken:
            self.good.add(write.into)
        self.follow(self.fetch.end_write(write.index, broken=broken))

    @rule(num_rounds=st.integers(1, 6))
    def nothing_goes_wrong_for_a_while(self, num_rounds: int) -> None:
        """What is under way moves on, in order: how most fetches get to land."""
        for _ in range(num_rounds):
            if self.to_source:
                self.tell_source(self.to_source.pop(0))
            if not self.lending.over:
                self.send(2)
            if self.to_sink:
                self.tell_sink(self.to_sink.pop(0))
            if self.writes:
                self.stop_writer(self.writes.pop(0), "")

    @rule(chance=RARELY)
    def the_client_goes(self, chance: int) -> None:
        if chance:
            return
        self.follow(self.fetch.cancel("client gone"))

    @rule(chance=RARELY)
    def the_deadline_passes(self, chance: int) -> None:
        if chance:
            return
        self.follow(self.fetch.fail(TransferError("late")))

    # -- always ---------------------------------------------------------------------------

    @invariant()
    def a_slot_has_at_most_one_writer(self) -> None:
        places = [write.into for write in self.writes]
        assert len(places) == len(set(places))
        assert sorted(self.fetch.writing) == sorted(write.index for write in self.writes)

    @invariant()
    def an_end_is_told_once_and_only_when_nobody_writes(self) -> None:
        assert self.num_ends == int(self.fetch.ended) <= 1
        if self.fetch.ended:
            assert self.fetch.over and not self.writes
        if self.fetch.over and not self.writes:
            assert self.fetch.ended

    @invariant()
    def nothing_lands_unless_complete_and_verified(self) -> None:
        if self.fetch.stage is FetchStage.LANDED:
            assert self.good >= {POOL_OFFSET + index for index in self.indices}
            assert self.fetch.note == b"note"

    def teardown(self) -> None:
        if not hasattr(self, "fetch"):
            return
        self.follow(self.fetch.cancel("the sink closes"))
        while self.writes:
            write = self.writes.pop()
            self.follow(self.fetch.end_write(write.index, broken="the fetch is over"))
        if not self.lending.over:
            self.lending.lapse()
        assert self.fetch.over and self.num_ends == 1
        assert self.lending.stage in (LeaseStage.RELEASED, LeaseStage.EXPIRED)


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
