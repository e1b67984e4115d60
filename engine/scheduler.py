"""Who computes what in the next step, and who owns which blocks until when.

Driven by `engine.loop`: commands in (`submit`, `abort`, `fetch_done`, `release`), one batch out
(`next_batch`), its tokens in (`record`, then `settle`), what happened out (`take_effects`).
Pure: the caller brings the clock's reading and runs the batch.

Every block a sequence owns is given back in `_free`, and only once its ending is decided and
neither a launched forward, nor a fetch, nor a lease refers to it. Nothing waits in a circle: a
lease and a fetch end by deadlines of their own, and among the others the oldest is never preempted.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping

from engine.batch import Chunk, SampledToken, SequenceId, StepInput
from engine.effects import Admitted, Computed, Effect, Ended, Freed
from engine.limits import EngineLimits
from engine.prefix import PrefixCache
from engine.sequence import (
    Cancel,
    Complete,
    Event,
    Fail,
    FetchOutcome,
    HandOver,
    Landed,
    Lost,
    Mode,
    Sequence,
    State,
    Verdict,
)
from protocol.messages import Blocks, Load


class Scheduler:
    """First come, first served; decodes before prefill chunks in every batch."""

    def __init__(
        self, *, cache: PrefixCache, limits: EngineLimits, eos_token_ids: Collection[int]
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._eos = frozenset(eos_token_ids)
        pool_tokens = cache.blocks.num_blocks * cache.block_tokens
        self.max_context_tokens = min(limits.max_context_tokens, pool_tokens)
        """What fits: a pool smaller than the model's context bounds it."""
        self.num_preempted = 0
        self._sequences: dict[SequenceId, Sequence] = {}
        self._lanes: dict[State, OrderedDict[SequenceId, Sequence]] = {
            state: OrderedDict() for state in State if state is not State.FREED
        }
        self._arrivals = 0
        self._launched: list[tuple[Sequence, int]] = []
        """Sequences of the batch being computed, and how many tokens of each."""
        self._sampled: list[tuple[Sequence, SampledToken]] = []
        """Tokens whose sequence has not been told yet whether it goes on."""
        self._effects: list[Effect] = []
        self._head_blocked: tuple[SequenceId, int] | None = None
        """Head of the queue that did not fit, and the room it needs."""

    # -- commands ---------------------------------------------------------------------------

    def submit(self, sequence: Sequence) -> None:
        """Queue it, or refuse it with an ending at once."""
        assert sequence.id not in self._sequences, f"sequence {sequence.id} exists already"
        self._arrivals += 1
        sequence.arrival = self._arrivals
        num_waiting = len(self._lanes[State.WAITING])
        self._sequences[sequence.id] = self._lanes[State.WAITING][sequence.id] = sequence
        if sequence.num_tokens >= self.max_context_tokens:
            message = (
                f"{sequence.num_tokens} tokens leave no room in a context of "
                f"{self.max_context_tokens}"
            )
            self._end(sequence, Fail("too_long", message))
        elif len(sequence.outputs) >= sequence.sampling.max_tokens:
            self._end(sequence, Complete("length"))
        elif num_waiting >= self._limits.max_waiting:
            self._end(sequence, Fail("overloaded", f"{num_waiting} requests are waiting already"))

    def abort(self, sequence_id: SequenceId) -> None:
        """End it as soon as no launched forward refers to it. Harmless when unknown or ended."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None or sequence.verdict is not None:
            return
        if sequence.in_flight:
            sequence.cancelled = True
        else:
            self._end(sequence, Cancel())

    def fetch_done(self, sequence_id: SequenceId, outcome: FetchOutcome) -> None:
        """Nobody writes into the reserved blocks any more. Harmless when unknown or repeated."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None or not sequence.fetch_open:
            return
        sequence.fetch_open = False
        if sequence.state is State.UNWINDING:
            self._free(sequence, Event.FETCH_ENDED)
            return
        match outcome:
            case Landed(first_token=first_token, first_logprob=logprob, first_top=top):
                self._move(sequence, Event.LANDED)
                sequence.landed = True
                sequence.num_computed = sequence.num_tokens
                self._cache.seal(sequence)
                token = SampledToken(token_id=first_token, logprob=logprob, top=top)
                sequence.outputs.append(first_token)
                self._sampled.append((sequence, token))
            case Lost(reason):
                self._end(sequence, Fail("source_lost", reason))

    def release(self, sequence_id: SequenceId) -> None:
        """The lease on a HANDOVER is over. Harmless when unknown or repeated."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return
        sequence.lease_held = False
        if sequence.state is State.LEASED:
            self._free(sequence, Event.LEASE_ENDED)

    def clear_cache(self) -> None:
        self._cache.clear()

    # -- one step ---------------------------------------------------------------------------

    def next_batch(self) -> StepInput:
        """What to compute now; empty if nothing can be. Must be recorded before the next one."""
        assert not self._launched, "the last batch is not recorded yet"
        self._grow_decodes()
        chunks = [self._launch(sequence, 1) for sequence in self._lanes[State.DECODING].values()]
        budget = self._limits.token_budget - len(chunks)
        for sequence in self._lanes[State.PREFILLING].values():
            if budget <= 0:
                break
            chunks.append(self._launch(sequence, budget))
            budget -= len(chunks[-1].token_ids)
        while (head := self._admit(budget)) is not None:
            if head.state is State.PREFILLING:
                chunks.append(self._launch(head, budget))
                budget -= len(chunks[-1].token_ids)
        return tuple(chunks)

    def record(self, sampled: Mapping[SequenceId, SampledToken]) -> None:
        """The batch is computed: its KV is written, these are its tokens."""
        launched, self._launched = self._launched, []
        block_tokens = self._cache.block_tokens
        for sequence, num_tokens in launched:
            sequence.in_flight = False
            sequence.num_computed += num_tokens
            if sequence.num_computed // block_tokens > sequence.num_sealed:
                self._cache.seal(sequence)
            if sequence.cancelled:
                self._end(sequence, Cancel())
                continue
            if sequence.mode is Mode.HANDOVER:
                self._effects.append(Computed(sequence, sequence.num_computed))
            if sequence.num_computed < sequence.num_tokens:
                continue
            token = sampled.get(sequence.id)
            if token is None:
                self._end(sequence, Fail("internal", "the runner returned no token"))
                continue
            sequence.outputs.append(token.token_id)
            self._sampled.append((sequence, token))

    def fail_batch(self, message: str) -> None:
        """The batch could not be computed: its sequences end, the others go on."""
        launched, self._launched = self._launched, []
        for sequence, _ in launched:
            sequence.in_flight = False
            self._end(sequence, Cancel() if sequence.cancelled else Fail("internal", message))

    def unsettled(self) -> list[tuple[Sequence, SampledToken]]:
        """Tokens since the last `settle`, each the last of its sequence's outputs."""
        return [pair for pair in self._sampled if pair[0].verdict is None]

    def settle(self, stopped: Collection[SequenceId], *, now: float) -> None:
        """Decide who goes on; the text of the `stopped` ones has come to its end."""
        sampled, self._sampled = self._sampled, []
        for sequence, token in sampled:
            if sequence.verdict is not None:
                continue
            if not sequence.first_token_at:
                sequence.first_token_at = now
            verdict = self._judge(sequence, token.token_id, stopped)
            if verdict is not None:
                self._end(sequence, verdict)
            elif sequence.state is State.PREFILLING:
                self._move(sequence, Event.SAMPLED)

    def take_effects(self) -> list[Effect]:
        """What happened since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def end_all(self, verdict: Verdict) -> None:
        """Give every sequence without an ending this one. Nothing may run afterwards."""
        for sequence in list(self._sequences.values()):
            sequence.in_flight = False
            if sequence.verdict is None:
                self._end(sequence, verdict)
        self._launched, self._sampled = [], []

    # -- facts ------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        lanes = self._lanes
        return (
            len(lanes[State.PREFILLING]) + len(lanes[State.DECODING]) + len(lanes[State.FETCHING])
        )

    def load(self) -> Load:
        waiting = self._lanes[State.WAITING]
        prefilling = self._lanes[State.PREFILLING].values()
        return Load(
            running=self.num_running,
            waiting=len(waiting),
            waiting_tokens=sum(s.num_tokens for s in waiting.values() if not s.needs_fetch)
            + sum(s.num_tokens - s.num_computed for s in prefilling),
        )

    def block_counts(self) -> Blocks:
        return self._cache.blocks.counts(leased=self._num_leased())

    def check(self) -> None:
        """Raise AssertionError unless every block is held by exactly who says so."""
        self._cache.check()
        holds: Counter[int] = Counter()
        for state, lane in self._lanes.items():
            for sequence in lane.values():
                assert sequence.state is state and self._sequences[sequence.id] is sequence
                holds.update(sequence.block_table)
                holds.update(sequence.twins.values())
                assert state is not State.WAITING or not sequence.block_table
                assert sequence.num_computed <= sequence.num_tokens
        assert sum(len(lane) for lane in self._lanes.values()) == len(self._sequences)
        for block in range(self._cache.blocks.num_blocks):
            refs = self._cache.blocks.refs(block)
            assert refs == holds[block], f"block {block}: {refs} refs, {holds[block]} holders"

    # -- decisions --------------------------------------------------------------------------

    def _judge(
        self, sequence: Sequence, token_id: int, stopped: Collection[SequenceId]
    ) -> Verdict | None:
        sampling, num_outputs = sequence.sampling, len(sequence.outputs)
        if sequence.id in stopped:
            return Complete("stop")
        if num_outputs > sampling.min_tokens and (
            token_id in sampling.stop_token_ids
            or (token_id in self._eos and not sampling.ignore_eos)
        ):
            return Complete("stop")
        if num_outputs >= sampling.max_tokens or sequence.num_tokens >= self.max_context_tokens:
            return Complete("length")
        return HandOver() if sequence.mode is Mode.HANDOVER else None

    def _grow_decodes(self) -> None:
        """A block for the next token of every decode; the newest sequences make room."""
        block_tokens = self._cache.block_tokens
        for sequence in list(self._lanes[State.DECODING].values()):
            while (
                sequence.state is State.DECODING
                and sequence.num_tokens > len(sequence.block_table) * block_tokens
            ):
                if self._cache.num_available:
                    sequence.block_table += self._cache.take((), num_new=1)
                else:
                    self._preempt()

    def _preempt(self) -> None:
        """Send the newest back to the head of the queue, to be recomputed."""
        lanes = self._lanes[State.PREFILLING], self._lanes[State.DECODING]
        candidates = [s for lane in lanes for s in lane.values() if s.preemptible]
        victim = max(candidates, key=lambda s: s.arrival)
        self._cache.give_back(victim)
        victim.num_computed = 0
        self._move(victim, Event.PREEMPTED)
        self._lanes[State.WAITING].move_to_end(victim.id, last=False)
        self.num_preempted += 1

    def _admit(self, budget: int) -> Sequence | None:
        """The head of the queue if it may start now. Nobody overtakes it."""
        head = next(iter(self._lanes[State.WAITING].values()), None)
        if head is None or self.num_running >= self._limits.max_running:
            return None
        if not head.needs_fetch and budget <= 0:
            return None
        if not self._allocate(head):
            return None
        head.lease_held = head.mode is Mode.HANDOVER
        head.fetch_open = head.needs_fetch
        self._move(head, Event.RESERVED if head.needs_fetch else Event.ADMITTED)
        if head.num_cached is None:
            head.num_cached = head.num_computed
            self._effects.append(Admitted(head))
        return head

    def _allocate(self, sequence: Sequence) -> bool:
        """Match the prefix cache and take blocks for all tokens, both or neither.

        At least one token is left to compute, unless a fetch brings the first output along."""
        cache, headroom = self._cache, self._headroom()
        if self._head_blocked is not None:
            blocked, room = self._head_blocked
            if blocked == sequence.id and room + headroom > cache.num_available:
                return False
        num_tokens = sequence.num_tokens
        matched = cache.match(
            sequence, max_tokens=num_tokens if sequence.needs_fetch else num_tokens - 1
        )
        num_blocks = -(-num_tokens // cache.block_tokens)
        room = num_blocks - cache.num_held(matched)
        if room + headroom > cache.num_available:
            self._head_blocked = (sequence.id, room)
            return False
        self._head_blocked = None
        sequence.block_table = cache.take(matched, num_new=num_blocks - len(matched))
        sequence.num_sealed = len(matched)
        sequence.num_computed = len(matched) * cache.block_tokens
        return True

    def _headroom(self) -> int:
        """Blocks left to those that grow, so that admission is not at once undone: one each,
        at most a twentieth of the pool."""
        growing = len(self._lanes[State.DECODING]) + len(self._lanes[State.FETCHING])
        return min(growing, self._cache.blocks.num_blocks // 20 + 1)

    # -- mechanics --------------------------------------------------------------------------

    def _launch(self, sequence: Sequence, max_tokens: int) -> Chunk:
        start, num_tokens = sequence.num_computed, sequence.num_tokens
        stop = min(start + max_tokens, num_tokens)
        sequence.in_flight = True
        self._launched.append((sequence, stop - start))
        return Chunk(
            sequence=sequence.id,
            token_ids=sequence.tokens(start, stop),
            start=start,
            block_table=sequence.block_table,
            sampling=sequence.sampling if stop == num_tokens else None,
            prompt=sequence.prompt,
            outputs=sequence.outputs,
        )

    def _end(self, sequence: Sequence, verdict: Verdict) -> None:
        sequence.verdict = verdict
        self._effects.append(Ended(sequence))
        if sequence.lease_held:
            self._move(sequence, Event.ENDED_UNDER_LEASE)
        elif sequence.fetch_open:
            self._move(sequence, Event.ENDED_UNDER_FETCH)
        else:
            self._free(sequence, Event.ENDED)

    def _free(self, sequence: Sequence, event: Event) -> None:
        self._cache.give_back(sequence)
        self._move(sequence, event)
        del self._sequences[sequence.id]
        self._effects.append(Freed(sequence))

    def _move(self, sequence: Sequence, event: Event) -> None:
        before = sequence.state
        sequence.move(event)
        del self._lanes[before][sequence.id]
        if sequence.state is not State.FREED:
            self._lanes[sequence.state][sequence.id] = sequence

    def _num_leased(self) -> int:
        """Blocks held by nobody but sequences that wait for their lease to end."""
        holds: Counter[int] = Counter()
        for sequence in self._lanes[State.LEASED].values():
            holds.update(sequence.block_table)
            holds.update(sequence.twins.values())
        return sum(1 for block, count in holds.items() if self._cache.blocks.refs(block) == count)
