"""Who computes what in the next step, and who gets blocks.

Driven by `engine.loop`: commands in (`submit`, `abort`, `fetch_done`, ...), one batch out
(`next_batch`), its tokens in (`record`, then `settle`), what happened out (`take_effects`).
Several batches may be out at once; they are recorded in the order they were made. Pure: the caller
runs the batches and brings the clock's reading.

First come, first served, decodes before prefill chunks in every batch. Nothing waits in a circle:
a launched forward is recorded whatever happens; a lease or a fetch holds all it will ever need and
ends by a deadline of its own; of the others the newest makes room, so the oldest always gets on.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import islice

from engine.batch import SampledToken, SequenceId, StepInput, StepTokens
from engine.kvcache.prefix_cache import PrefixCache
from engine.limits import EngineLimits
from engine.scheduling.in_flight import Part, Steps
from engine.scheduling.sequence_table import Effect, Roster
from engine.sequence import (
    Cancel,
    Complete,
    Event,
    Fail,
    FetchOutcome,
    HandOver,
    Landed,
    Lost,
    Sequence,
    State,
    Verdict,
)
from protocol.messages import Blocks, Load

STEPS_AHEAD = 2
"""Steps of a sequence that may be launched before the first of them is recorded."""


class Scheduler:
    """Moves sequences through their states; `Roster` keeps the books."""

    def __init__(
        self, *, cache: PrefixCache, limits: EngineLimits, eos_token_ids: Collection[int]
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._eos = frozenset(eos_token_ids)
        self.max_context_tokens = self._max_context_tokens()
        """What fits: a pool smaller than the model's context bounds it."""
        self.num_preempted = 0
        self._num_arrivals = 0
        self._roster = Roster(cache)
        self._steps = Steps(cache)
        self._leaving: Sequence | None = None
        """To be preempted once no launched forward refers to it: it gets no chunk meanwhile."""
        self._sampled: list[tuple[Sequence, SampledToken]] = []
        """Tokens whose sequence has not been told yet whether it goes on."""
        self._blocked: tuple[Sequence, int] | None = None
        """Head of the queue that did not fit, and the blocks it needs."""

    # -- commands ---------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Queue it, or refuse it with an ending at once."""
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        is_full = self._is_queue_full()
        self._roster.enter(sequence)
        num_tokens, most = sequence.num_tokens, self.max_context_tokens
        if num_tokens >= most:
            message = f"{num_tokens} tokens leave no room in a context of {most}"
            self._roster.end(sequence, Fail("too_long", message))
        elif len(sequence.outputs) >= sequence.sampling.max_tokens:
            self._roster.end(sequence, Complete("length"))
        elif is_full:
            message = f"{len(self._roster.waiting) - 1} requests are waiting already"
            self._roster.end(sequence, Fail("overloaded", message))

    def abort(self, sequence_id: SequenceId) -> None:
        """End it. Harmless when unknown or ended."""
        sequence = self._roster.get(sequence_id)
        if sequence is not None and sequence.verdict is None:
            self._roster.end(sequence, Cancel())

    def fetch_done(self, sequence_id: SequenceId, outcome: FetchOutcome) -> None:
        """Nobody writes into the reserved blocks any more, the quarantined ones apart. Harmless
        when unknown or repeated; a source may be lost before there were blocks to fetch into."""
        sequence = self._roster.get(sequence_id)
        if sequence is None or not sequence.needs_fetch:
            return
        match outcome:
            case Landed() if sequence.state is State.FETCHING:
                self._land(sequence, outcome)
            case Landed():
                self._roster.fetch_ended(sequence)
            case Lost():
                self._lose(sequence, outcome)

    def quiet(self, blocks: Collection[int]) -> None:
        """Nobody writes into these quarantined blocks any more. Harmless when repeated."""
        self._roster.quiet(blocks)

    def release(self, sequence_id: SequenceId) -> None:
        """The lease on a HANDOVER is over. Harmless when unknown or repeated."""
        sequence = self._roster.get(sequence_id)
        if sequence is not None:
            self._roster.lease_ended(sequence)

    # -- one step ---------------------------------------------------------------------------

    def next_batch(self) -> StepInput:
        """What to compute next, to be launched at once; empty if nothing can be."""
        self._steps.begin()
        chunks = [self._steps.add(sequence, 1) for sequence in self._next_decodes()]
        budget = self._limits.token_budget - len(chunks)
        for sequence in self._roster.prefilling.values():
            if budget <= 0:
                break
            if sequence.num_launched < sequence.num_tokens and sequence is not self._leaving:
                chunks.append(self._steps.add(sequence, budget))
                budget -= len(chunks[-1].token_ids)
        while (head := self._admit(budget)) is not None:
            if head.state is State.PREFILLING:
                chunks.append(self._steps.add(head, budget))
                budget -= len(chunks[-1].token_ids)
        if not chunks:
            self._steps.take_newest()
        return tuple(chunks)

    def record(self, sampled: StepTokens) -> None:
        """The oldest batch is computed: its KV is written, these are its tokens. Who asked for one
        and has none ends, alone; tokens of those that have their ending are nobody's."""
        block_tokens = self._cache.block_tokens
        for sequence, start, stop in self._steps.take_oldest():
            sequence.in_flight -= 1
            if sequence.verdict is not None:
                self._record_ended(sequence, start, stop)
                continue
            assert sequence.num_computed == start, f"sequence {sequence.id} has a gap at {start}"
            asked = stop == sequence.num_tokens
            if asked and sequence.id not in sampled:
                message = "the model answers no number for its next token"
                self._roster.end(sequence, Fail("internal", message, final=True))
                continue  # nothing of this step is sealed: its KV may be damaged
            sequence.num_computed = stop
            if stop // block_tokens > sequence.num_sealed:
                self._steps.seal(sequence)
                self._cache.drop_unreachable(sequence)
            if sequence.leases:
                self._roster.computed(sequence)
            if asked:
                for token in sampled[sequence.id]:
                    self._append(sequence, token)

    def fail_oldest(self, message: str) -> None:
        """The oldest batch could not be computed: its sequences end, the others go on."""
        self._fail(self._steps.take_oldest(), message)

    def fail_newest(self, message: str) -> None:
        """The batch last made could not be launched: its sequences end, the others go on."""
        self._fail(self._steps.take_newest(), message)

    def unsettled(self) -> list[tuple[Sequence, SampledToken]]:
        """Tokens since the last `settle`, each the last of its sequence's outputs."""
        return [pair for pair in self._sampled if pair[0].verdict is None]

    def settle(self, stopped: Collection[SequenceId], *, now: float) -> None:
        """Decide who goes on; the text of the `stopped` ones has come to its end."""
        settled, self._sampled = self._sampled, []
        for sequence, token in settled:
            if sequence.verdict is not None:
                continue
            if not sequence.first_token_at:
                sequence.first_token_at = now
            verdict = self._judge(sequence, token.token_id, stopped)
            if verdict is not None:
                self._roster.end(sequence, verdict)
            elif sequence.state is State.PREFILLING:
                self._roster.move(sequence, Event.SAMPLED)
                promise = min(sequence.num_promised, self._decode_promise(sequence))
                self._cache.promise(sequence, promise)

    def take_effects(self) -> list[Effect]:
        """What happened since the last call, in order."""
        return self._roster.take_effects()

    def end_all(self, verdict: Verdict) -> None:
        """Give every sequence without an ending this one. Nothing may run afterwards."""
        self._sampled = []
        while self._steps:
            self._steps.take_oldest()
        for sequence in self._roster.all():
            sequence.in_flight = 0
            if sequence.verdict is None:
                self._roster.end(sequence, verdict)
            elif sequence.state is State.DRAINING:
                self._roster.drained(sequence)

    # -- facts ------------------------------------------------------------------------------

    def load(self) -> Load:
        return self._roster.load()

    def block_counts(self) -> Blocks:
        return self._roster.block_counts()

    def check(self) -> None:
        """Raise AssertionError unless every block is held by exactly those who say so."""
        self._roster.check(self._steps.displaced)

    # -- decisions --------------------------------------------------------------------------

    def _is_queue_full(self) -> bool:
        """Whoever can start at once does not count as waiting: a burst finds seats first."""
        num_over = len(self._roster.waiting) - self._limits.max_waiting
        if num_over < 0:
            return False
        num_seats = self._limits.max_running - self._roster.num_running
        num_blocks = self._cache.num_spare
        for sequence in islice(self._roster.waiting.values(), num_over + 1):
            num_seats -= 1
            reach, num_tokens = self._cache.reach, sequence.num_tokens
            num_blocks -= reach.num_whole * reach.num_rows(num_tokens) + self._promise(sequence)
            if num_seats < 0 or num_blocks < 0:
                return True
        return False

    def _max_context_tokens(self) -> int:
        """The most tokens for which the pool has room, for one sequence alone, however it runs."""
        reach, most = self._cache.reach, self._limits.max_context_tokens

        def num_blocks(num_rows: int) -> int:
            # One short of a whole block: a window then begins a row earlier.
            num_tokens = max(0, num_rows * reach.block_tokens - (reach.block_tokens > 1))
            num_ahead = STEPS_AHEAD * self._limits.token_budget
            held = reach.most_held(num_tokens, num_ahead=num_ahead, lends=True)
            return num_rows * reach.num_whole + held

        rows = range(reach.num_rows(most) + 1)
        num_rows = bisect_right(rows, self._cache.blocks.num_blocks, key=num_blocks) - 1
        return min(most, num_rows * reach.block_tokens)

    def _promise(self, sequence: Sequence) -> int:
        """Blocks of groups with a window that a sequence to be admitted may hold at a time."""
        num_ahead = STEPS_AHEAD * (1 if sequence.needs_fetch else self._limits.token_budget)
        return self._cache.reach.most_held(
            sequence.num_tokens, num_ahead=num_ahead, lends=sequence.leases
        )

    def _judge(
        self, sequence: Sequence, token_id: int, stopped: Collection[SequenceId]
    ) -> Verdict | None:
        sampling, num_outputs = sequence.sampling, len(sequence.outputs)
        ends_here = token_id in sampling.stop_token_ids or (
            token_id in self._eos and not sampling.ignore_eos
        )
        if sequence.id in stopped or (ends_here and sampling.may_end(num_outputs - 1)):
            return Complete("stop")
        if num_outputs >= sampling.max_tokens or sequence.num_tokens >= self.max_context_tokens:
            return Complete("length")
        return HandOver() if sequence.leases else None

    def _next_decodes(self) -> list[Sequence]:
        """Who gets its next token in this step, a block for it included. Those whose last token is
        known come first: for them the newest sequence makes room. The others may be launched ahead
        of it, into room that nobody needs more."""
        roster, num_preempted = self._roster, self.num_preempted
        self._leaving = None
        running = list(roster.decoding.values())
        chosen = [
            s for s in running if not s.in_flight and (self._has_room(s) or self._make_room(s))
        ]
        if self._leaving is not None or self.num_preempted != num_preempted:
            chosen = [s for s in chosen if s is not self._leaving and s.state is State.DECODING]
        if len(self._steps) > 1:
            running += roster.prefilling.values()
            chosen += [s for s in running if s.in_flight and self._may_lead(s)]
        return chosen

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for its next token; the newest sequence makes room."""
        while sequence.state is State.DECODING and not self._has_room(sequence):
            if not self._grow(sequence) and not self._preempt_newest():
                return False
        return sequence.state is State.DECODING

    def _may_lead(self, sequence: Sequence) -> bool:
        """Whether its next token may be computed before the last one is read: it is certain to go
        on but for a word that ends it, and there is room."""
        num_tokens, pending = sequence.num_tokens, sequence.pending
        if not (
            pending
            and sequence is not self._leaving
            and not sequence.leases
            and not sequence.looks_back
            and len(sequence.outputs) + pending < sequence.sampling.max_tokens
            and num_tokens + pending < self.max_context_tokens
        ):
            return False
        return self._has_room(sequence) or self._grow(sequence)

    def _has_room(self, sequence: Sequence) -> bool:
        cache = self._cache
        num_rows = len(sequence.block_table) // cache.num_groups
        return sequence.num_launched < num_rows * cache.block_tokens

    def _grow(self, sequence: Sequence) -> bool:
        """One more row of blocks, unless others were promised all that is left."""
        cache = self._cache
        promise = max(sequence.num_promised, self._decode_promise(sequence))
        rise = promise - sequence.num_promised
        if cache.num_spare < cache.reach.num_whole + rise:
            return False
        cache.promise(sequence, promise)
        cache.add_row(sequence)
        return True

    def _decode_promise(self, sequence: Sequence) -> int:
        """As of `_promise`, for one whose next token is launched when all its prompt is, the last
        chunk perhaps not recorded."""
        num_tokens = sequence.num_launched + 1
        num_ahead = max(STEPS_AHEAD, num_tokens - sequence.num_computed)
        return self._cache.reach.most_held(num_tokens, num_ahead=num_ahead)

    def _preempt_newest(self) -> bool:
        """To be recomputed later: the only one who loses is the one who came last. False while a
        launched forward refers to it: it then sits this step out, and so does who needs room."""
        running = [*self._roster.prefilling.values(), *self._roster.decoding.values()]
        newest = max((s for s in running if s.preemptible), key=lambda s: s.arrival)
        if newest.in_flight:
            self._leaving = newest
            return False
        self._roster.preempt(newest)
        self.num_preempted += 1
        return True

    def _admit(self, budget: int) -> Sequence | None:
        """The head of the queue if it may start now. Nobody overtakes it."""
        head = next(iter(self._roster.waiting.values()), None)
        if head is None or self._roster.num_running >= self._limits.max_running:
            return None
        if budget <= 0 and not head.needs_fetch:
            return None
        if not self._allocate(head):
            return None
        self._roster.admit(head)
        return head

    def _allocate(self, sequence: Sequence) -> bool:
        """Match the prefix cache and take blocks for all tokens, of groups with a window a
        promise: all or nothing.

        At least one token is left to compute, unless a fetch brings the next one along.
        """
        cache = self._cache
        available = cache.num_spare - self._headroom()
        if self._blocked is not None:
            blocked, num_needed = self._blocked
            if blocked is sequence and num_needed > available:
                return False  # matching a long prompt in every step would cost the decodes
        num_tokens = sequence.num_tokens
        computable = num_tokens if sequence.needs_fetch else num_tokens - 1
        resume_at = num_tokens if sequence.needs_fetch else 0
        matched = cache.match(sequence, max_tokens=computable, resume_at=resume_at)
        num_matched = len(matched) // cache.num_groups
        if self._is_arriving(sequence, num_matched):
            return False
        promise = self._promise(sequence)
        num_new = cache.reach.num_whole * (cache.reach.num_rows(num_tokens) - num_matched)
        num_needed = num_new + cache.num_unheld(matched) + promise
        if num_needed > available:
            self._blocked = (sequence, num_needed)
            return False
        self._blocked = None
        named = sequence.leases or sequence.needs_fetch
        lacking = cache.reach.lacking(num_matched, num_tokens=num_tokens, named=named)
        cache.promise(sequence, promise)
        cache.take_table(sequence, matched, lacking)
        sequence.num_sealed = num_matched
        sequence.num_computed = sequence.num_launched = num_matched * cache.block_tokens
        return True

    def _is_arriving(self, sequence: Sequence, index: int) -> bool:
        """Whether the fetch of a sequence that has its ending may have brought the block that
        this one lacks first: it will be said in a moment, when that fetch has ended. So a request
        placed again does not fetch twice what came for its last attempt."""
        wanted = sequence.chain[index + 1 : index + 2]
        unwinding = self._roster.unwinding.values()
        return bool(wanted) and any(s.chain[index + 1 : index + 2] == wanted for s in unwinding)

    def _headroom(self) -> int:
        """Blocks left to those that grow, so that admission is not undone at once: one of each
        group, at most a twentieth of the pool."""
        num_growing = len(self._roster.decoding) + len(self._roster.fetching)
        num_groups = self._cache.num_groups
        return min(num_growing * num_groups, self._cache.blocks.num_blocks // 20 + num_groups)

    # -- mechanics --------------------------------------------------------------------------

    def _record_ended(self, sequence: Sequence, start: int, stop: int) -> None:
        """What it has computed may still be found, unless a step before has failed; not what it
        has computed of a token that nobody knows."""
        if sequence.num_computed == start:
            sequence.num_computed = min(stop, sequence.num_tokens)
            self._steps.seal(sequence)
            self._cache.drop_unreachable(sequence)
        if not sequence.in_flight:
            self._roster.drained(sequence)

    def _fail(self, parts: Iterable[Part], message: str) -> None:
        for sequence, _, _ in parts:
            sequence.in_flight -= 1
            if sequence.verdict is None:
                self._roster.end(sequence, Fail("internal", message))
            elif not sequence.in_flight:
                self._roster.drained(sequence)

    def _land(self, sequence: Sequence, landed: Landed) -> None:
        """The KV of all its tokens is here, and with it the next token."""
        self._roster.fetch_ended(sequence)
        self._roster.move(sequence, Event.LANDED)
        sequence.landed = True
        sequence.num_computed = sequence.num_launched = sequence.num_tokens
        self._steps.seal(sequence)
        token = SampledToken(
            token_id=landed.first_token, logprob=landed.first_logprob, top=landed.first_top
        )
        self._append(sequence, token)

    def _lose(self, sequence: Sequence, lost: Lost) -> None:
        """What did arrive stays findable: another source, or a prefill here, goes on from it."""
        self._roster.quarantine(lost.quarantined)
        if lost.num_tokens > sequence.num_computed:
            num_rows = len(sequence.block_table) // self._cache.num_groups
            assert lost.num_tokens <= num_rows * self._cache.block_tokens
            sequence.num_computed = min(lost.num_tokens, sequence.num_tokens)
            self._steps.seal(sequence)
        if sequence.verdict is None:
            sequence.fetch_open = False
            self._roster.end(sequence, Fail("source_lost", lost.reason))
        else:
            self._roster.fetch_ended(sequence)

    def _append(self, sequence: Sequence, token: SampledToken) -> None:
        sequence.outputs.append(token.token_id)
        self._sampled.append((sequence, token))
