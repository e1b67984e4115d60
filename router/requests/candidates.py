"""Asks `router.placement.place` about the workers of the moment and what the index knows of them.

Never awaits.
"""

from collections.abc import Sequence

from protocol.blocks import block_hashes, chain_seed
from protocol.ids import BlockHash, WorkerId
from router.placement.place import Choice, Prefer, Refusal, place
from router.placement.prefix_index import PrefixIndex
from router.requests.context import Journey
from router.workers.registry import Registry
from router.workers.worker import LiveWorker


class Chooser:
    def __init__(self, *, registry: Registry, index: PrefixIndex, prefer: Prefer) -> None:
        self._registry = registry
        self._index = index
        self._prefer = prefer

    def choose(self, journey: Journey, *, now: float) -> Choice | Refusal:
        """Among ready workers that did not refuse; suspects only when there is nobody else."""
        ready = [w for w in self._registry.ready_workers() if w.id not in journey.refused]
        trusted = [worker for worker in ready if worker.id not in journey.suspects]
        choice = self._place(journey, trusted, now)
        if isinstance(choice, Refusal) and len(trusted) < len(ready):
            choice = self._place(journey, ready, now)
        return choice

    def note_chosen(self, journey: Journey, choice: Choice, *, now: float) -> None:
        """Until the workers' beats and events tell of this prompt, believe in it."""
        for worker in self._registry.ready_workers():
            if worker.id in (choice.prefill, choice.decode):
                computes = choice.prefill is None or worker.id == choice.prefill
                num_tokens = choice.num_uncached_tokens if computes else 0
                worker.note_sent(journey.flight.wire_id, num_tokens, now=now)
                self._index.expect(worker.id, _hashes(journey, worker), now=now)

    def note_ended(self, journey: Journey) -> None:
        """The attempt is over, well or not."""
        for worker in self._registry.workers:
            worker.note_ended(journey.flight.wire_id)

    def _place(
        self, journey: Journey, workers: Sequence[LiveWorker], now: float
    ) -> Choice | Refusal:
        cached = self._cached_tokens(journey, workers, now)
        generated = len(journey.flight.generated)
        return place(
            [worker.candidate(num_cached_tokens=cached[worker.id]) for worker in workers],
            num_tokens=journey.num_tokens,
            max_output_tokens=journey.request.sampling.max_tokens - generated,
            prefer=self._prefer,
        )

    def _cached_tokens(
        self, journey: Journey, workers: Sequence[LiveWorker], now: float
    ) -> dict[WorkerId, int]:
        """One walk of the index per compat hash, whatever the number of workers."""
        depths: dict[str, dict[WorkerId, int]] = {}
        cached = {}
        for worker in workers:
            compat = worker.registration.compat
            if compat not in depths:
                depths[compat] = self._index.depths(_hashes(journey, worker), now=now)
            depth = depths[compat].get(worker.id, 0)
            cached[worker.id] = depth * worker.registration.layout.block_tokens
        return cached


def _hashes(journey: Journey, worker: LiveWorker) -> list[BlockHash]:
    compat = worker.registration.compat
    if compat not in journey.hashes:
        journey.hashes[compat] = block_hashes(
            (*journey.request.token_ids, *journey.flight.generated),
            block_tokens=worker.registration.layout.block_tokens,
            seed=chain_seed(compat=compat, salt=journey.request.salt),
        )
    return journey.hashes[compat]
