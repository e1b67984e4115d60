"""Both state tables of a fetch against a network that loses, repeats, reorders and spoils.

Whatever happens: a slot has at most one writer, nothing is adopted unless complete and verified,
an end is told once and only when nobody writes, and in the end both sides are at rest.
"""

from dataclasses import dataclass
from typing import TypeVar

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


T = TypeVar("T")


def draw_from(words: list[T], data: st.DataObject, *, keep: bool = False) -> T:
    """Any of them, taken out unless it is to come again."""
    place = data.draw(st.integers(0, len(words) - 1))
    return words[place] if keep else words.pop(place)


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
        num_tokens=st.integers(9, 24),
        wanted=st.integers(0, 63),
        started=st.booleans(),
        finished=st.booleans(),
    )
    def begin(self, num_tokens: int, wanted: int, started: bool, finished: bool) -> None:
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        self.indices = [index for index in range(num_blocks) if wanted >> index & 1]
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

    @rule(num_tokens=st.integers(0, 24))
    def the_engine_writes(self, num_tokens: int) -> None:
        if num_tokens < self.lending.num_tokens:
            self.lending.publish(num_tokens)
        elif self.lending.note is None:
            self.lending.finish(b"note")

    @rule(data=st.data(), again=st.booleans(), limit=st.integers(1, 4))
    def the_source_takes_a_turn(self, data: st.DataObject, again: bool, limit: int) -> None:
        """It hears words in any order, some twice, and sends what is ready."""
        if self.to_source:
            self.tell_source(draw_from(self.to_source, data, keep=again))
        self.send(limit)

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

    def send(self, limit: int) -> None:
        if self.lending.over:
            return
        for index in self.lending.take_ready(limit):
            block = self.lending.describe(index, 0)
            assert block.token_start + block.token_count <= self.lending.num_written
            self.to_sink.append(Frame(self.lending.attempt, block))
        note = self.lending.take_note()
        if note is not None:
            self.to_sink.append(Note(self.lending.attempt, note))

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
        self.tell_sink(draw_from(self.to_sink, data, keep=again))

    def tell_sink(self, word: ToSink) -> None:
        match word:
            case Note(attempt=attempt, note=note):
                self.follow(self.fetch.note_arrived(attempt=attempt, note=note))
            case Frame(attempt=attempt, block=block):
                into = self.fetch.begin_write(attempt=attempt, block=block)
                if into is not None:
                    assert not self.fetch.over and attempt == self.fetch.attempt
                    assert into == POOL_OFFSET + block.index and into not in self.good
                    self.writes.append(Write(block.index, into))
            case TransferError():
                self.follow(self.fetch.fail(word))

    @precondition(lambda self: self.writes)
    @rule(data=st.data(), broken=st.sampled_from(["", "checksum", "truncated"]))
    def a_writer_stops(self, data: st.DataObject, broken: str) -> None:
        self.stop_writer(draw_from(self.writes, data), broken)

    def stop_writer(self, write: Write, broken: str) -> None:
        if not broken:
            self.good.add(write.into)
        self.follow(self.fetch.end_write(write.index, broken=broken))

    # -- the world ------------------------------------------------------------------------

    @rule(num_rounds=st.integers(1, 4))
    def nothing_goes_wrong_for_a_while(self, num_rounds: int) -> None:
        """What is under way moves on, in order: how most fetches get to land."""
        for _ in range(num_rounds):
            if self.to_source:
                self.tell_source(self.to_source.pop(0))
            self.send(2)
            if self.to_sink:
                self.tell_sink(self.to_sink.pop(0))
            if self.writes:
                self.stop_writer(self.writes.pop(0), "")

    @precondition(lambda self: self.to_source or self.to_sink)
    @rule(data=st.data(), kind=st.integers(0, 5))
    def a_word_is_lost(self, data: st.DataObject, kind: int) -> None:
        """Rarely: after it, nothing but the deadline may end the fetch."""
        if kind:
            return
        if self.to_source:
            draw_from(self.to_source, data)
        else:
            draw_from(self.to_sink, data)

    @rule(kind=st.integers(0, 7))
    def something_ends_it(self, kind: int) -> None:
        """Mostly not, so that runs get further than a few words."""
        if kind == 0:
            self.follow(self.fetch.cancel("client gone"))
        elif kind == 1:
            self.follow(self.fetch.fail(TransferError("late")))
        elif kind == 2 and not self.lending.over:
            self.lending.lapse()
            self.to_sink.append(TransferError("the lease ran out"))

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
            return  # it never began
        self.follow(self.fetch.cancel("the sink closes"))
        while self.writes:
            write = self.writes.pop()
            self.follow(self.fetch.end_write(write.index, broken="the fetch is over"))
        if not self.lending.over:
            self.lending.lapse()
        assert self.fetch.over and self.num_ends == 1
        assert self.lending.stage in (LeaseStage.RELEASED, LeaseStage.EXPIRED)


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
