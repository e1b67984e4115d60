"""Both state tables against a network that loses, repeats, reorders, cuts and spoils.

Several transfers share both pools. Whatever happens: a slot has at most one writer, nothing is
adopted unless complete and verified, an end is told once, and in the end both sides are at rest
and every block is back in its pool.
"""

from collections.abc import Sequence
from typing import TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.transfer_world import BLOCK_TOKENS, POOL_BLOCKS, Chunked, Transfer, World

from kvtransfer.lending import LeaseStage
from protocol.errors import TransferError

MAX_BLOCKS = 5
MAX_TRANSFERS = 3
FIELDS = ("index", "slot", "token_start", "token_count", "num_bytes", "generation", "checksum")
T = TypeVar("T")


def draw_from(words: list[T], data: st.DataObject, *, keep: bool = False) -> T:
    """Any of them, taken out unless it is to come again."""
    place = data.draw(st.integers(0, len(words) - 1))
    return words[place] if keep else words.pop(place)


class Transfers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def some(self, data: st.DataObject, of: Sequence[Transfer] | None = None) -> Transfer:
        return data.draw(st.sampled_from(self.world.transfers if of is None else of))

    @property
    def writing(self) -> list[Transfer]:
        return [transfer for transfer in self.world.transfers if transfer.writes]

    @property
    def has_room(self) -> bool:
        world = self.world
        room = min(len(world.free_slots), len(world.free_blocks))
        return room >= MAX_BLOCKS and len(world.transfers) < MAX_TRANSFERS

    # -- what workers do ------------------------------------------------------------------

    @precondition(lambda self: self.has_room)
    @rule(
        num_tokens=st.integers(1, MAX_BLOCKS * BLOCK_TOKENS),
        wanted=st.lists(st.booleans(), min_size=MAX_BLOCKS, max_size=MAX_BLOCKS),
        stoppable=st.booleans(),
    )
    def a_transfer_begins(self, num_tokens: int, wanted: list[bool], stoppable: bool) -> None:
        self.world.begin(num_tokens, wanted, stoppable=stoppable)

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), finish=st.booleans())
    def the_prefill_goes_on(self, data: st.DataObject, finish: bool) -> None:
        transfer = self.some(data)
        if finish:
            self.world.finish(transfer)
        else:
            left = transfer.lending.num_tokens - transfer.lending.num_written
            step = data.draw(st.integers(0, left))
            self.world.compute(transfer, transfer.lending.num_written + step)

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data())
    def blocks_of_an_ended_lease_go_to_another_request(self, data: st.DataObject) -> None:
        self.world.give_away(self.some(data))

    @precondition(lambda self: any(transfer.adopted for transfer in self.world.transfers))
    @rule(data=st.data())
    def a_worker_is_done_with_what_it_adopted(self, data: st.DataObject) -> None:
        self.world.release(self.some(data, [t for t in self.world.transfers if t.adopted]))

    @precondition(lambda self: any(self.is_history(t) for t in self.world.transfers))
    @rule()
    def what_is_over_on_both_sides_is_forgotten(self) -> None:
        world = self.world
        world.transfers = [t for t in world.transfers if not self.is_history(t)]

    @staticmethod
    def is_history(transfer: Transfer) -> bool:
        settled = transfer.fetch.ended and not transfer.writes and not transfer.adopted
        return settled and transfer.lent_back

    # -- what the network does ------------------------------------------------------------

    @precondition(lambda self: any(not t.attached for t in self.world.transfers))
    @rule(data=st.data())
    def a_stream_comes_up(self, data: st.DataObject) -> None:
        """The first, or another after a break: the fetch goes on where it was."""
        self.world.attach(self.some(data, [t for t in self.world.transfers if not t.attached]))

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), again=st.booleans(), limit=st.integers(1, 4))
    def the_source_takes_a_turn(self, data: st.DataObject, again: bool, limit: int) -> None:
        """It hears words in any order, some twice, and sends what is ready."""
        transfer = self.some(data)
        if transfer.to_source:
            word = draw_from(transfer.to_source, data, keep=again)
            self.world.tell_source(transfer, word)
        self.world.send(transfer, limit)

    @precondition(lambda self: any(t.stream for t in self.world.transfers))
    @rule(data=st.data(), again=st.booleans())
    def the_sink_takes_a_word_off_a_stream(self, data: st.DataObject, again: bool) -> None:
        transfer = self.some(data, [t for t in self.world.transfers if t.stream])
        self.world.hear(transfer, draw_from(transfer.stream, data, keep=again))

    @precondition(lambda self: any(t.refusals for t in self.world.transfers))
    @rule(data=st.data())
    def the_sink_hears_that_the_source_refuses(self, data: st.DataObject) -> None:
        transfer = self.some(data, [t for t in self.world.transfers if t.refusals])
        error = draw_from(transfer.refusals, data)
        self.world.follow(transfer, transfer.fetch.fail(error))

    @precondition(lambda self: any(t.stream for t in self.world.transfers))
    @rule(data=st.data(), field=st.sampled_from(FIELDS), by=st.sampled_from([1, 3]))
    def a_description_is_spoilt(self, data: st.DataObject, field: str, by: int) -> None:
        """One number of one piece is another; as that piece's own bytes cannot be."""
        transfer = self.some(data, [t for t in self.world.transfers if t.stream])
        word = draw_from(transfer.stream, data, keep=True)
        if isinstance(word, Chunked):
            at = data.draw(st.integers(0, len(word.pieces_P) - 1))
            spoilt_P = word.pieces_P.copy()
            spoilt_P[field][at] += by
            self.world.hear(transfer, Chunked(word.attempt, spoilt_P, word.blocks))

    @precondition(lambda self: any(t.attached for t in self.world.transfers))
    @rule(data=st.data())
    def a_stream_breaks(self, data: st.DataObject) -> None:
        self.world.break_stream(self.some(data, [t for t in self.world.transfers if t.attached]))

    @precondition(lambda self: any(t.to_source or t.stream for t in self.world.transfers))
    @rule(data=st.data(), kind=st.integers(0, 3))
    def a_word_is_lost(self, data: st.DataObject, kind: int) -> None:
        """Rarely: after it, nothing but the deadline may end the fetch."""
        transfer = self.some(data, [t for t in self.world.transfers if t.to_source or t.stream])
        if kind == 0 and transfer.to_source:
            draw_from(transfer.to_source, data)
        elif kind == 1 and transfer.stream:
            draw_from(transfer.stream, data)

    # -- what writers do ------------------------------------------------------------------

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), num_pieces=st.integers(1, MAX_BLOCKS))
    def a_writer_copies(self, data: st.DataObject, num_pieces: int) -> None:
        write = data.draw(st.sampled_from(self.some(data, self.writing).writes))
        self.world.copy(write, num_pieces)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), whole=st.booleans())
    def a_writer_ends(self, data: st.DataObject, whole: bool) -> None:
        """Having copied all, or only as much as it had."""
        transfer = self.some(data, self.writing)
        write = data.draw(st.sampled_from(transfer.writes))
        if whole:
            self.world.copy(write, MAX_BLOCKS)
        self.world.end_write(transfer, write)

    # -- what ends transfers --------------------------------------------------------------

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), kind=st.integers(0, 7))
    def something_ends_it(self, data: st.DataObject, kind: int) -> None:
        """Mostly not, so that runs get further than a few words."""
        transfer, world = self.some(data), self.world
        fetch, lending = transfer.fetch, transfer.lending
        if kind == 0:
            world.follow(transfer, fetch.cancel("client gone"))
        elif kind == 1:
            world.follow(transfer, fetch.fail(TransferError("late")))
        elif kind == 2 and not lending.over:
            lending.lapse()
            transfer.refusals.append(TransferError("the lease ran out"))

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), num_rounds=st.integers(1, 4))
    def nothing_goes_wrong_for_a_while(self, data: st.DataObject, num_rounds: int) -> None:
        """What is under way moves on, in order: how most fetches get to land."""
        transfer, world = self.some(data), self.world
        for _ in range(num_rounds):
            if not transfer.attached:
                world.attach(transfer)
            if transfer.to_source:
                world.tell_source(transfer, transfer.to_source.pop(0))
            world.send(transfer, 2)
            if transfer.stream:
                world.hear(transfer, transfer.stream.pop(0))
            if transfer.writes:
                world.copy(transfer.writes[0], MAX_BLOCKS)
                world.end_write(transfer, transfer.writes[0])

    # -- always ---------------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        for transfer in world.transfers:
            world.break_stream(transfer)
            world.follow(transfer, transfer.fetch.cancel("the sink closes"))
            for write in list(transfer.writes):
                world.stop_write(transfer, write)
            if not transfer.lending.over:
                transfer.lending.lapse()
            world.give_away(transfer)
            world.release(transfer)
            assert transfer.num_ends == 1
            assert transfer.lending.stage in (LeaseStage.RELEASED, LeaseStage.EXPIRED)
        world.check()
        assert len(world.free_slots) == len(world.free_blocks) == POOL_BLOCKS


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
