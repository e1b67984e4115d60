"""Tells the observer what the scheduler and the prefix cache have to say, in the order it came."""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import assert_never

from engine.batch import SequenceId
from engine.kvcache.prefix_cache import PrefixCache
from engine.kvcache.windows import NO_BLOCK
from engine.observer import EngineObserver, PrefixToPull, SequenceToken
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence_table import (
    Effect,
    SequenceAdmitted,
    SequenceComputed,
    SequenceEnded,
    SequenceFreed,
    SequencePulls,
    SequenceRead,
)
from engine.sequence import Sequence

log = logging.getLogger(__name__)


class Reporter:
    def __init__(
        self,
        observer: EngineObserver,
        *,
        scheduler: Scheduler,
        cache: PrefixCache,
        generations: Seq[int],
        clock: Callable[[], float],
    ) -> None:
        self._observer = observer
        self._scheduler = scheduler
        self._cache = cache
        self._generations = generations
        self._clock = clock
        self.freed: list[SequenceId] = []
        """Sequences whose blocks are all back, for the engine to forget."""

    def deliver(self) -> None:
        """All that happened; settles what the observer says about the texts."""
        self._report()
        while unsettled := self._scheduler.unsettled():
            tokens = [
                SequenceToken(id=sequence.id, index=len(sequence.outputs) - 1, token=token)
                for sequence, token in unsettled
            ]
            stopped = self._observer.step(tokens)
            self._scheduler.settle(stopped, now=self._clock())
            self._report()
        self._observer.settled()
        changes = self._cache.take_changes()
        if changes:
            self._observer.blocks_changed(changes)

    def deliver_last(self) -> None:
        """Whatever the observer raises: each sequence has its ending."""
        for effect in self._scheduler.take_effects():
            try:
                self._tell(effect)
            except Exception:
                log.exception("observer failed", extra={"effect": type(effect).__name__})
        self._observer.settled()

    def _report(self) -> None:
        for effect in self._scheduler.take_effects():
            self._tell(effect)

    def _tell(self, effect: Effect) -> None:
        match effect:
            case SequenceAdmitted(sequence):
                self._tell_admitted(sequence)
            case SequencePulls(sequence, num_tokens):
                self._tell_pull(sequence, num_tokens)
            case SequenceComputed(sequence, num_tokens):
                self._observer.computed(sequence.id, num_tokens)
            case SequenceRead(sequence, first, read):
                self._observer.read(sequence.id, first, read)
            case SequenceEnded(sequence, verdict):
                self._observer.ended(sequence.id, verdict, sequence.usage(now=self._clock()))
            case SequenceFreed(sequence):
                self.freed.append(sequence.id)
            case _:
                assert_never(effect)

    def _tell_pull(self, sequence: Sequence, num_tokens: int) -> None:
        block_tokens, table = self._cache.block_tokens, sequence.block_table
        first, last = sequence.num_computed // block_tokens, num_tokens // block_tokens
        prefix = PrefixToPull(
            seed=table.chain[0], hashes=table.hashes(sequence.tokens, last),
            token_ids=sequence.tokens(0, num_tokens), first_block=first,
            block_ids=tuple(table.blocks[first:last]),
        )  # fmt: skip
        self._observer.pull(sequence.id, prefix)

    def _tell_admitted(self, sequence: Sequence) -> None:
        table = sequence.shown_blocks
        self._observer.admitted(
            sequence.id,
            table,
            tuple(0 if block == NO_BLOCK else self._generations[block] for block in table),
            sequence.num_computed,
            sequence.admitted_at - sequence.submitted_at,
        )
