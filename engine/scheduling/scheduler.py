"""Who computes what in the next step, and who gets blocks.

Commands in (`submit`, `abort`, `fetch_done`, ...), one batch out (`schedule`), its tokens in
(`record`, then `settle`), what happened out (`take_effects`). Several batches may be out at once;
they are recorded in the order they were made. Pure: the caller runs the batches and brings the
clock's reading.

The most urgent first, by priority and then as they came; decodes before prefill chunks in every
batch. Nothing waits in a circle: a launched forward is recorded whatever happens; a lease, a loan
or a fetch holds all it will ever need and ends by a deadline of its own; of the others the least
urgent makes room, so the most urgent always gets on. Who is less urgent than all that comes may
wait until somebody aborts it: no priority grows with time.
"""

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import assert_never

from engine.batch import Chunk, SampledToken, SequenceId, StepInput, StepReadings, StepTokens
from engine.constraint import Constraint
from engine.kvcache.loans import LentPrefix, LoanId, Loans
from engine.kvcache.prefix_cache import PrefixCache
from engine.limits import EngineLimits
from engine.scheduling.admission import SequenceAdmission
from engine.scheduling.in_flight import InFlightSteps
from engine.scheduling.running import Running
from engine.scheduling.sequence_table import COMPUTED_STATES, Effect, SequenceTable
from engine.sequence import (
    Abandon,
    Complete,
    Fail,
    FetchLanded,
    FetchLost,
    FetchOutcome,
    HandOver,
    PullEnded,
    Sequence,
    SequenceEvent,
    SequenceState,
    Verdict,
)
from protocol.ids import BlockHash
from protocol.messages import Blocks, Load


class Scheduler:
    """Moves sequences through their states; `SequenceTable` keeps the books."""

    def __init__(
        self, *, cache: PrefixCache, limits: EngineLimits, eos_token_ids: Collection[int]
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._num_arrivals = 0
        self._table = SequenceTable(cache)
        self._steps = InFlightSteps(cache)
        self._loans = Loans(cache)
        self._admission = SequenceAdmission(cache=cache, limits=limits, table=self._table)
        self.max_context_tokens = self._admission.max_context_tokens()
        """What fits: a pool smaller than the model's context bounds it."""
        self._running = Running(groups=cache.groups, table=self._table, steps=self._steps)
        self._sampled: list[tuple[Sequence, SampledToken]] = []
        """Tokens whose sequence has not been told yet whether it goes on."""
        self._following: list[tuple[Sequence, Seq[SampledToken]]] = []
        """What the same steps sampled after them."""

    # -- commands ---------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Queue it, or refuse it with an ending at once."""
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        rule, room = sequence.sampling, self.max_context_tokens - len(sequence.prompt)
        sequence.ending_ids = rule.ending_ids(self._eos_token_ids)
        sequence.max_outputs = min(rule.max_tokens, room)
        is_full = self._admission.is_queue_full()
        self._table.add(sequence)
        num_tokens, most = sequence.num_tokens, self.max_context_tokens
        if num_tokens >= most + (not sequence.generates):
            message = f"{num_tokens} tokens leave no room in a context of {most}"
            self._table.finish(sequence, Fail("too_long", message))
        elif sequence.generates and len(sequence.outputs) >= sequence.sampling.max_tokens:
            self._table.finish(sequence, Complete("length"))
        elif is_full:
            message = f"{self._table.load().waiting - 1} requests are waiting already"
            self._table.finish(sequence, Fail("overloaded", message))

    def compiled(self, sequence_id: SequenceId, outcome: Constraint | Fail) -> None:
        """Its grammar is, and has accepted its outputs. Harmless when unknown or ended."""
        sequence = self._table.get(sequence_id)
        if sequence is None or sequence.state is not SequenceState.COMPILING:
            return
        verdict: Verdict | None
        if isinstance(outcome, Fail):
            verdict = outcome
        else:
            sequence.constraint, verdict = outcome, _held_to(outcome)
        if verdict is not None:
            self._table.finish(sequence, verdict)
        else:
            self._table.move(sequence, SequenceEvent.COMPILED)

    def abort(self, sequence_id: SequenceId) -> None:
        """End it. Harmless when unknown or ended."""
        sequence = self._table.get(sequence_id)
        if sequence is not None and sequence.verdict is None:
            self._table.finish(sequence, Abandon())

    def fetch_done(self, sequence_id: SequenceId, outcome: FetchOutcome) -> None:
        """Nobody writes into the reserved blocks any more, the quarantined ones apart. Harmless
        when unknown or repeated; a source may be lost before there were blocks to fetch into."""
        sequence = self._table.get(sequence_id)
        if sequence is None or not sequence.needs_fetch:
            return
        match outcome:
            case FetchLanded() if sequence.state is SequenceState.FETCHING:
                self._land(sequence, outcome)
            case FetchLanded():
                self._table.fetch_ended(sequence)
            case FetchLost():
                self._lose(sequence, outcome)
            case _:
                assert_never(outcome)

    def pull_done(self, sequence_id: SequenceId, ended: PullEnded) -> None:
        """As `fetch_done`, of a beginning that somebody else had cached: what did not come is
        computed. Where somebody may still write into a block, on other blocks."""
        sequence = self._table.get(sequence_id)
        if sequence is None or not sequence.is_pulling:
            return
        self._table.quarantine(ended.quarantined)
        if ended.num_tokens > sequence.num_computed:
            assert ended.num_tokens < sequence.num_tokens
            sequence.num_computed = sequence.num_launched = ended.num_tokens
            self._steps.seal_computed(sequence)
        if sequence.verdict is None:
            self._table.end_pull(sequence, starts_over=bool(ended.quarantined))
        else:
            self._table.fetch_ended(sequence)

    def lend(self, loan: LoanId, *, seed: BlockHash, token_ids: Seq[int]) -> LentPrefix:
        """As `Loans.lend`."""
        return self._loans.lend(loan, seed=seed, token_ids=token_ids)

    def hold_spare(self, loan: LoanId) -> int | None:
        """As `Loans.hold_spare`."""
        return self._loans.hold_spare(loan)

    def end_loan(self, loan: LoanId) -> None:
        """Nobody reads its blocks any more. Harmless when unknown or repeated."""
        self._loans.end(loan)

    def quiet(self, blocks: Collection[int]) -> None:
        """Nobody writes into these quarantined blocks any more. Harmless when repeated."""
        self._table.release_quarantined(blocks)

    def release(self, sequence_id: SequenceId) -> None:
        """The lease on a HANDOVER is over. Harmless when unknown or repeated."""
        sequence = self._table.get(sequence_id)
        if sequence is not None:
            self._table.lease_ended(sequence)

    # -- one step ---------------------------------------------------------------------------

    def schedule(self, *, now: float) -> StepInput:
        """What to compute next, to be launched at once; empty if nothing can be.

        Who finished left in `settle`, fetches ended in `fetch_done`. Now the running ones continue,
        the least urgent preempted where one lacks a block; then who waits is admitted.
        """
        self._steps.begin_step()
        chunks = [self._steps.add_chunk(decode, 1) for decode in self._running.next_decodes()]
        budget = self._continue_prefills(chunks, self._limits.token_budget - len(chunks), now)
        self._admit_waiting(chunks, budget, now)
        if not chunks:
            self._steps.pop_newest_step()
        return tuple(chunks)

    def _continue_prefills(self, chunks: list[Chunk], budget: int, now: float) -> int:
        """Who waits with a higher priority than one that runs is admitted before it."""
        for sequence in self._running.next_prefills():
            budget = self._admit_waiting(chunks, budget, now, before=sequence.priority)
            if budget <= 0:
                break
            budget = self._prefill(sequence, chunks, budget)
        return budget

    def _admit_waiting(
        self, chunks: list[Chunk], budget: int, now: float, *, before: int | None = None
    ) -> int:
        while (head := self._admission.admit_head(budget, now=now, before=before)) is not None:
            if head.state is SequenceState.PREFILLING and budget > 0:
                budget = self._prefill(head, chunks, budget)
        return budget

    def _prefill(self, sequence: Sequence, chunks: list[Chunk], budget: int) -> int:
        """One chunk of its prompt; what is left of the budget."""
        chunk = self._steps.add_chunk(sequence, budget)
        chunks.append(chunk)
        return budget - len(chunk.token_ids)

    def record(self, sampled: StepTokens, readings: StepReadings | None = None) -> None:
        """The oldest batch is computed: its KV is written, these are its tokens, one a sequence or,
        as speculation would find them, several that follow each other, and the rows it read. Who
        asked for a token and has none ends, alone; what is of those that have their ending is
        nobody's."""
        block_tokens = self._cache.block_tokens
        for sequence, start, stop in self._steps.pop_oldest_step():
            sequence.in_flight -= 1
            if start < len(sequence.prompt):
                sequence.block_table.note_copied()
            if sequence.verdict is not None:
                self._record_ended(sequence, start, stop)
                continue
            assert sequence.num_computed == start, f"sequence {sequence.id} has a gap at {start}"
            is_whole = stop == sequence.num_tokens
            asked = is_whole and sequence.generates
            if asked and sequence.id not in sampled:
                self._table.finish(sequence, _no_token(sequence))
                continue  # nothing of this step is sealed: its KV may be damaged
            sequence.num_computed = stop
            if stop // block_tokens > sequence.block_table.num_sealed:
                self._seal_computed(sequence)
            if readings and (read := readings.get(sequence.id)) is not None:
                self._table.note_read(sequence, sequence.rows_to_read(start, stop), read)
            if sequence.leases:
                self._table.note_computed(sequence)
            if asked:
                self._append(sequence, sampled[sequence.id])
            elif is_whole:
                self._table.finish(sequence, Complete("length"))

    def undo_newest(self) -> None:
        """The batch last made is as if it had never been, launched or not: none of its KV counts,
        and its sequences are computed again."""
        for sequence, start, _ in self._steps.pop_newest_step():
            sequence.in_flight -= 1
            if sequence.verdict is None:
                sequence.num_launched = start
            elif not sequence.in_flight:
                self._table.drained(sequence)

    def schedule_alone(self, sequence_id: SequenceId) -> StepInput:
        """What comes next of one sequence of a batch that was undone, beside nobody; empty if it
        has ended since, or got on and needs a block. Nothing may be in flight."""
        sequence = self._table.get(sequence_id)
        if sequence is None or sequence.state not in COMPUTED_STATES:
            return ()
        if sequence.num_launched >= sequence.block_table.num_slots:
            return ()
        self._steps.begin_step()
        return (self._steps.add_chunk(sequence, self._limits.token_budget),)

    def fail(self, sequence_id: SequenceId, message: str) -> None:
        """It cannot be computed here, even alone."""
        sequence = self._table.get(sequence_id)
        if sequence is not None and sequence.verdict is None:
            self._table.finish(sequence, Fail("internal", message))

    def unsettled(self) -> list[tuple[Sequence, SampledToken]]:
        """One token of each sequence that has any, the last of its outputs. A step's tokens are
        settled one by one, so until there are none: what follows an ending is nobody's."""
        return [pair for pair in self._sampled if pair[0].verdict is None]

    def settle(self, stopped: Collection[SequenceId], *, now: float) -> None:
        """Decide who goes on; the text of the `stopped` ones has come to its end."""
        settled, self._sampled = self._sampled, []
        following, self._following = self._following, []
        for sequence, token in settled:
            if sequence.verdict is not None:
                continue
            if not sequence.first_token_at:
                sequence.first_token_at = now
            verdict = self._judge(sequence, token.token_id, stopped)
            if verdict is not None:
                self._table.finish(sequence, verdict)
            elif sequence.life.state is SequenceState.PREFILLING:
                self._table.move(sequence, SequenceEvent.SAMPLED)
                self._running.lower_promise(sequence)
        for sequence, tokens in following:
            if sequence.verdict is None:
                self._append(sequence, tokens)

    def take_effects(self) -> list[Effect]:
        """What happened since the last call, in order."""
        return self._table.take_effects()

    def end_all(self, verdict: Verdict) -> None:
        """Give every sequence without an ending this one. Nothing may run afterwards."""
        self._sampled, self._following = [], []
        while self._steps:
            self._steps.pop_oldest_step()
        for sequence in self._table.all():
            sequence.in_flight = 0
            if sequence.verdict is None:
                self._table.finish(sequence, verdict)
            elif sequence.state is SequenceState.DRAINING:
                self._table.drained(sequence)

    # -- facts ------------------------------------------------------------------------------

    @property
    def num_preempted(self) -> int:
        return self._running.num_preempted

    @property
    def num_forked(self) -> int:
        """Sequences that went on from another's prompt, the block in which it ends copied."""
        return self._admission.num_forked

    def load(self) -> Load:
        return self._table.load()

    def block_counts(self) -> Blocks:
        return self._table.block_counts(self._loans.blocks)

    def check(self) -> None:
        """Raise AssertionError unless every block is held by exactly those who say so."""
        self._table.check([*self._steps.displaced, *self._loans.blocks])

    # -- mechanics ---------------------------------------------------------------------------

    def _judge(
        self, sequence: Sequence, token_id: int, stopped: Collection[SequenceId]
    ) -> Verdict | None:
        num_outputs, ending_ids = len(sequence.outputs), sequence.ending_ids
        if sequence.id in stopped:
            return Complete("stop")
        if (constraint := sequence.constraint) is not None:
            constraint.accept(token_id)
            if (verdict := _held_to(constraint)) is not None:
                return verdict
        if token_id in ending_ids or num_outputs >= sequence.max_outputs:
            reason = sequence.sampling.reason_to_end(token_id, num_outputs, ending_ids)
            if reason is not None:
                return Complete(reason)
            if num_outputs >= sequence.max_outputs:
                return Complete("length")
        return HandOver() if sequence.leases else None

    def _record_ended(self, sequence: Sequence, start: int, stop: int) -> None:
        """What it has computed may still be found, unless a step before gave it no token; not what
        it has computed of a token that nobody knows."""
        if sequence.num_computed == start:
            sequence.num_computed = min(stop, sequence.num_tokens)
            self._seal_computed(sequence)
        if not sequence.in_flight:
            self._table.drained(sequence)

    def _seal_computed(self, sequence: Sequence) -> None:
        self._steps.seal_computed(sequence)
        sequence.block_table.drop_unreachable(sequence.num_computed)
        self._table.note_sealed(sequence)

    def _land(self, sequence: Sequence, landed: FetchLanded) -> None:
        """The KV of all its tokens is here, and with it the next token."""
        self._table.fetch_ended(sequence)
        sequence.landed = True
        sequence.num_computed = sequence.num_launched = sequence.num_tokens
        self._table.move(sequence, SequenceEvent.LANDED)
        self._steps.seal_computed(sequence)
        self._append(sequence, (landed.token,))

    def _lose(self, sequence: Sequence, lost: FetchLost) -> None:
        """What did arrive stays findable: another source, or a prefill here, goes on from it."""
        self._table.quarantine(lost.quarantined)
        if lost.num_tokens > sequence.num_computed:
            assert lost.num_tokens <= sequence.block_table.num_slots
            sequence.num_computed = min(lost.num_tokens, sequence.num_tokens)
            self._steps.seal_computed(sequence)
        if sequence.verdict is None:
            sequence.fetch_open = False
            self._table.finish(sequence, Fail("source_lost", lost.reason))
        else:
            self._table.fetch_ended(sequence)

    def _append(self, sequence: Sequence, tokens: Seq[SampledToken]) -> None:
        token = tokens[0]
        sequence.outputs.append(token.token_id)
        self._sampled.append((sequence, token))
        if len(tokens) > 1:
            self._following.append((sequence, tokens[1:]))


def _held_to(constraint: Constraint) -> Verdict | None:
    """What it says of going on."""
    if constraint.has_ended:
        return Complete("stop")
    return Fail("grammar", constraint.error, final=True) if constraint.error else None


def _no_token(sequence: Sequence) -> Fail:
    """None has a finite logit of those that may be its next."""
    if sequence.constraint is not None and (why := sequence.constraint.error):
        return Fail("grammar", why, final=True)
    return Fail("internal", "the model answers no number for its next token", final=True)
