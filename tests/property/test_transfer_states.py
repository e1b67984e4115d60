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

from kvtransfer.source.lease import LeaseStage
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
    def has_room(self) -> bool:
        world = self.world
        room = min(len(world.free_slots), len(world.free_blocks))
        return room >= MAX_BLOCKS and len(world.transfers) < MAX_TRANSFERS

    # -- what workers do ------------------------------------------------------------------

    @precondition(lambda self: self.has_room)
    @rule(
        num_tokens=st.integers(BLOCK_TOKENS + 1, MAX_BLOCKS * BLOCK_TOKENS),
        num_hits=st.integers(0, 2),
        stoppable=st.booleans(),
        finished=st.booleans(),
        asks=st.booleans(),
    )
    def a_transfer_begins(
        self, num_tokens: int, num_hits: int, stoppable: bool, finished: bool, asks: bool
    ) -> None:
        """Of all blocks but the first few, before or after the prefill has finished; or of what is
        cached, which it asks for first."""
        wanted = [index >= num_hits for index in range(MAX_BLOCKS)]
        if asks:
            num_tokens -= num_tokens % BLOCK_TOKENS
        transfer = self.world.begin(num_tokens, wanted, stoppable=stoppable, asks=asks)
        self.world.attach(transfer)
        if finished:
            self.world.finish(transfer)

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), step=st.integers(0, 2 * BLOCK_TOKENS))
    def the_prefill_goes_on(self, data: st.DataObject, step: int) -> None:
        """By some tokens; at the last it says its note."""
        transfer = self.some(data)
        lease = transfer.lease
        num_tokens = min(lease.num_written + step, lease.num_tokens)
        self.world.compute(transfer, num_tokens)
        if num_tokens == lease.num_tokens:
            self.world.finish(transfer)

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), forget=st.booleans())
    def blocks_go_to_others(self, data: st.DataObject, forget: bool) -> None:
        """Those of an ended lease are written by another request; those adopted are let go."""
        world, transfer = self.world, self.some(data)
        world.give_away(transfer)
        if forget:
            world.release(transfer)
        world.transfers = [t for t in world.transfers if not self.is_history(t)]

    @staticmethod
    def is_history(transfer: Transfer) -> bool:
        settled = transfer.fetch.ended and not transfer.writes and not transfer.adopted
        return settled and transfer.lent_back

    # -- what moves -----------------------------------------------------------------------

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), again=st.booleans(), limit=st.integers(1, 3), spoil=st.integers(0, 5))
    def words_move(self, data: st.DataObject, again: bool, limit: int, spoil: int) -> None:
        """In any order, some twice, some descriptions spoilt on their way."""
        world, transfer = self.world, self.some(data)
        if transfer.to_source:
            world.tell_source(transfer, draw_from(transfer.to_source, data, keep=again))
        if transfer.answers:
            world.hear(transfer, draw_from(transfer.answers, data, keep=again))
        world.send(transfer, limit)
        if transfer.stream:
            word = draw_from(transfer.stream, data, keep=again)
            if spoil == 0 and isinstance(word, Chunked):
                word = self.spoilt(word, data)
            world.hear(transfer, word)
        elif transfer.refusals:
            world.follow(transfer, transfer.fetch.fail(draw_from(transfer.refusals, data)))

    def spoilt(self, word: Chunked, data: st.DataObject) -> Chunked:
        """One number of one piece is another."""
        pieces_P = word.pieces_P.copy()
        at = data.draw(st.integers(0, len(pieces_P) - 1))
        pieces_P[data.draw(st.sampled_from(FIELDS))][at] += data.draw(st.sampled_from([1, 3]))
        return Chunked(word.attempt, pieces_P, word.blocks)

    @precondition(lambda self: any(transfer.writes for transfer in self.world.transfers))
    @rule(data=st.data(), num_pieces=st.integers(0, MAX_BLOCKS), end=st.booleans())
    def a_writer_moves(self, data: st.DataObject, num_pieces: int, end: bool) -> None:
        """It copies some pieces, and may end there, truncated or done."""
        transfer = self.some(data, [t for t in self.world.transfers if t.writes])
        write = data.draw(st.sampled_from(transfer.writes))
        self.world.copy(write, num_pieces)
        if end:
            self.world.end_write(transfer, write)

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), num_rounds=st.integers(1, 4), last=st.sampled_from([False, True]))
    def nothing_goes_wrong_for_a_while(
        self, data: st.DataObject, num_rounds: int, last: bool
    ) -> None:
        """What is under way moves on, in order; the last write stays open."""
        transfer, world = self.some(data), self.world
        for number in range(num_rounds):
            if not transfer.attached:
                world.attach(transfer)
            if transfer.to_source:
                world.tell_source(transfer, transfer.to_source.pop(0))
            if transfer.answers:
                world.hear(transfer, transfer.answers.pop(0))
            world.send(transfer, 2)
            if transfer.stream:
                world.hear(transfer, transfer.stream.pop(0))
            if transfer.writes and (last or number < num_rounds - 1):
                world.copy(transfer.writes[0], MAX_BLOCKS)
                world.end_write(transfer, transfer.writes[0])

    # -- what goes wrong ------------------------------------------------------------------

    @precondition(lambda self: self.world.transfers)
    @rule(data=st.data(), kind=st.integers(0, 15))
    def something_goes_wrong(self, data: st.DataObject, kind: int) -> None:
        """Mostly not, so that runs get further than a few words."""
        transfer, world = self.some(data), self.world
        fetch, lease = transfer.fetch, transfer.lease
        match kind:
            case 0:
                world.follow(transfer, fetch.cancel("client gone"))
            case 1:
                world.follow(transfer, fetch.fail(TransferError("late")))
            case 2 if not lease.is_over:
                lease.lapse()
                transfer.refusals.append(TransferError("the lease ran out"))
                world.give_away(transfer)
            case 3 if transfer.to_source:
                draw_from(transfer.to_source, data)
            case 4 if transfer.stream:
                draw_from(transfer.stream, data)
            case 5 | 6 | 7 if transfer.attached:
                world.break_stream(transfer)
            case 8 | 9 if not transfer.attached:
                world.attach(transfer)

    # -- always ---------------------------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        for transfer in world.transfers:
            world.break_stream(transfer)
            world.follow(transfer, transfer.fetch.cancel("the sink closes"))
            while transfer.writes:
                world.stop_write(transfer, transfer.writes[0])
            if not transfer.lease.is_over:
                transfer.lease.lapse()
            world.give_away(transfer)
            world.release(transfer)
            assert transfer.num_ends == 1
            assert transfer.lease.stage in (LeaseStage.RELEASED, LeaseStage.EXPIRED)
        world.check()
        assert len(world.free_slots) == len(world.free_blocks) == POOL_BLOCKS


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
