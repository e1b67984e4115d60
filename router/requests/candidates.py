"""Which workers a request may go to at this moment, and what is known to be cached on each.

Asks `router.placement.place`. Pure: workers and time are values passed in. Believes what was sent a
moment ago before the workers tell of it, for that may take them a beat.
"""

from collections.abc import Sequence

from protocol.blocks import chain_seed, packed_hashes, prompt_reach
from protocol.ids import WorkerId
from router.placement.place import Placement, PlacementRefusal, Prefer, place, place_prompt
from router.prefix.found import FoundPrefix
from router.prefix.prefix_index import PrefixIndex
from router.prefix.seen import SeenBlocks
from router.prefix.table import Slots
from router.requests.context import RequestContext
from router.workers.worker import KnownWorker


class Candidates:
    def __init__(self, *, index: PrefixIndex, prefer: Prefer) -> None:
        self._index = index
        self._prefer = prefer
        self._seen = SeenBlocks()

    def place_request(
        self, context: RequestContext, ready: Sequence[KnownWorker], *, now: float
    ) -> Placement | PlacementRefusal:
        """Among ready workers that did not refuse; those that failed it only when there is nobody
        else. Nobody joins a suspect (`_place_suspect`) until it was heard of."""
        open_ = [worker for worker in ready if worker.id not in context.refused]
        unheld = [worker for worker in open_ if not worker.is_held(now=now)]
        place_it = self._place_suspect if context.routed.num_suspected else self._place_trusted
        placement = place_it(context, unheld, now)
        if isinstance(placement, PlacementRefusal) and len(unheld) < len(open_):
            return PlacementRefusal(why="held", reason="a worker is kept for a suspect")
        return placement

    def note_placed(
        self,
        context: RequestContext,
        placement: Placement,
        ready: Sequence[KnownWorker],
        *,
        now: float,
    ) -> None:
        """Until the workers' beats and events tell of this prompt, believe in it."""
        if context.routed.cached_tokens is None:
            context.found = self._found(context, placement, ready, now)
        for worker in ready:
            if worker.id in (placement.prefill, placement.decode):
                computes = placement.prefill is None or worker.id == placement.prefill
                num_tokens = placement.num_uncached_tokens if computes else 0
                worker.note_sent(
                    context.routed.wire_id,
                    num_tokens,
                    first=len(context.routed.generated) + (not computes),
                    suspect=context.routed.num_suspected > 0,
                    now=now,
                )
                self._index.expect_blocks(worker.id, _hashes(context, worker), now=now)

    def note_ended(self, context: RequestContext, workers: Sequence[KnownWorker]) -> None:
        """The attempt is over, well or not."""
        for worker in workers:
            worker.note_ended(context.routed.wire_id)

    def _place_suspect(
        self, context: RequestContext, workers: Sequence[KnownWorker], now: float
    ) -> Placement | PlacementRefusal:
        """It may have ended a worker: where nobody is, or, when that has taken too long, where
        nobody is new, so that another loss shows whether it did."""
        waits = now < context.alone_until
        apart = [w for w in workers if (w.is_empty if waits else not w.unheard)]
        if {worker.role for worker in apart} == {worker.role for worker in workers}:
            placement = self._place_trusted(context, apart, now)
            if isinstance(placement, Placement):
                return placement
        if waits and workers:
            return PlacementRefusal(why="held", reason="others are on every worker")
        return self._place_trusted(context, workers, now)

    def _place_trusted(
        self, context: RequestContext, workers: Sequence[KnownWorker], now: float
    ) -> Placement | PlacementRefusal:
        trusted = [worker for worker in workers if worker.id not in context.suspects]
        placement = self._place(context, trusted, now)
        if isinstance(placement, PlacementRefusal) and len(trusted) < len(workers):
            placement = self._place(context, workers, now)
        return placement

    def _place(
        self, context: RequestContext, workers: Sequence[KnownWorker], now: float
    ) -> Placement | PlacementRefusal:
        cached = self._cached_tokens(context, workers, now)
        generated = len(context.routed.generated)
        candidates = [worker.candidate(num_cached_tokens=cached[worker.id]) for worker in workers]
        if not context.routed.generates:
            request = context.request
            return place_prompt(
                candidates,
                num_tokens=len(request.token_ids),
                max_output_tokens=request.sampling.max_tokens,
            )
        return place(
            candidates,
            num_tokens=context.num_tokens,
            max_output_tokens=context.request.sampling.max_tokens - generated,
            prefer=self._prefer,
        )

    def _cached_tokens(
        self, context: RequestContext, workers: Sequence[KnownWorker], now: float
    ) -> dict[WorkerId, int]:
        """One walk of the index per compat hash, whatever the number of workers."""
        depths: dict[str, Slots] = {}
        cached = {}
        for worker in workers:
            compat = worker.registration.compat
            if compat not in depths:
                depths[compat] = self._index.depths(_hashes(context, worker), now=now)
            slot = self._index.slot_of(worker.id)
            depth = 0 if slot is None else int(depths[compat][slot])
            num_cached = depth * worker.registration.layout.block_tokens
            cached[worker.id] = min(num_cached, context.routed.num_reusable)
        return cached

    def _found(
        self,
        context: RequestContext,
        placement: Placement,
        ready: Sequence[KnownWorker],
        now: float,
    ) -> FoundPrefix | None:
        """Before the prompt is expected anywhere."""
        computes = placement.prefill or placement.decode
        worker = next((worker for worker in ready if worker.id == computes), None)
        if worker is None:
            return None
        block_tokens = worker.registration.layout.block_tokens
        most = (len(context.request.token_ids) - 1) // block_tokens * block_tokens
        cached = self._cached_tokens(context, ready, now)
        num_held = min(most, max(cached.values()))
        if context.found is None:
            num_seen = self._seen.see_prompt(_hashes(context, worker)) * block_tokens
        else:  # seen when it was placed for the first time
            num_seen = context.found.num_seen_tokens
        return FoundPrefix(
            num_predicted_tokens=min(most, cached[computes]),
            num_held_tokens=num_held,
            num_seen_tokens=max(num_held, min(most, num_seen, context.routed.num_reusable)),
        )


def _hashes(context: RequestContext, worker: KnownWorker) -> bytes:
    compat, request = worker.registration.compat, context.request
    if compat not in context.hashes:
        after = worker.registration.dynamic_after
        reach = prompt_reach(len(request.token_ids), dynamic_after=after)
        context.hashes[compat] = packed_hashes(
            (*request.token_ids, *context.routed.generated),
            block_tokens=worker.registration.layout.block_tokens,
            seed=chain_seed(compat=compat, salt=request.salt, reach=reach),
        )
    return context.hashes[compat]
