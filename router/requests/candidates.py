"""Which workers a request may go to at this moment, and what is known to be cached on each.

Asks `router.placement`. Pure: workers and time are values passed in. Believes what was sent a
moment ago before the workers tell of it, for that may take them a beat.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from protocol.blocks import chain_seed, packed_hashes, prompt_reach
from protocol.ids import RequestId, WorkerId
from router.placement.cost import Demand
from router.placement.fleet import Chain, Fleet
from router.placement.place import Placement, PlacementRefusal, PlacementRules, place
from router.placement.prompt import place_prompt
from router.placement.sessions import Sessions
from router.prefix.found import FoundPrefix
from router.prefix.prefix_index import PrefixIndex
from router.prefix.seen import SeenBlocks
from router.prefix.table import Slots
from router.requests.context import RequestContext
from router.requests.family import ForkPoint
from router.requests.trace import Prediction
from router.workers.worker import KnownWorker, Sent

Workers = Mapping[WorkerId, KnownWorker]
NO_SLOTS = np.zeros(0, np.uint32)
CLEARED_S = 7.0
"""How long workers are kept free of newcomers for a suspect that found none so: most first tokens
come sooner."""

MOST_APART = 4
"""Pairs that are passed over because no KV moves between them, before that is left to the retry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cleared:
    """Workers that nobody new comes to, so that one suspect finds them without others."""

    suspect: RequestId
    workers: frozenset[WorkerId]


class Candidates:
    """`workers` have their rows in `fleet`, and come and go while this lives."""

    def __init__(
        self, *, index: PrefixIndex, fleet: Fleet, workers: Workers, rules: PlacementRules
    ) -> None:
        self.avoided: frozenset[WorkerId] = frozenset()
        """Stand still, as far as is known: nobody goes there while there is anyone else."""
        self._index = index
        self._fleet = fleet
        self._workers = workers
        self._rules = rules
        self._sessions = Sessions()
        self._seen = SeenBlocks()
        self._looked_up: tuple[RequestContext, Slots] | None = None
        """The last request placed, and how much of its prompt each worker had then."""
        self._num_placed = 0
        self._with_suspects: set[WorkerId] = set()
        self._cleared: _Cleared | None = None

    def place_request(self, context: RequestContext, *, now: float) -> Placement | PlacementRefusal:
        """Among ready workers of its version that did not refuse; those that failed it only when
        there is nobody else. Nobody joins a suspect (`_place_suspect`) until it was heard of."""
        held = self._held(context, now) - context.refused
        shut = context.refused | held
        place_it = self._place_suspect if context.routed.num_suspected else self._place_trusted
        placement = place_it(context, shut, now)
        if isinstance(placement, PlacementRefusal) and self._ready(held, context):
            return PlacementRefusal(why="held", reason="a worker is kept for a suspect")
        return placement

    def place_fork(
        self, context: RequestContext, point: ForkPoint, *, now: float
    ) -> Placement | None:
        """With the first of its family. None: that worker is not for this one."""
        routed, worker = context.routed, self._workers.get(point.worker)
        if worker is None or not worker.is_ready or worker.epoch != point.epoch:
            return None
        if not worker.serves(context.request.version):
            return None
        shut = context.refused | context.suspects | self.avoided | self._held(context, now)
        if routed.num_suspected or routed.generated or not routed.generates or worker.id in shut:
            return None
        num_tokens = len(context.request.token_ids)
        return Placement(
            prefill=None,
            decode=worker.id,
            reason=f"{worker.id}; forked from the first choice; uncached 1 of {num_tokens} tokens",
            cost_s=point.expected_first_s,
            num_uncached_tokens=1,
            fork_of=point.origin,
        )

    def note_placed(self, context: RequestContext, placement: Placement, *, now: float) -> None:
        """Until the workers' reports and events tell of this prompt, believe in it."""
        self._num_placed += 1
        self._forget_cleared(context)
        context.compat = self._workers[placement.decode].registration.compat
        if context.routed.cached_tokens is None:
            context.found = self._found(context, placement, now)
        for name in (placement.prefill, placement.decode):
            worker = None if name is None else self._workers.get(name)
            if worker is None:
                continue
            computes = placement.prefill is None or worker.id == placement.prefill
            sent = Sent(
                at_s=now,
                num_tokens=context.num_tokens,
                num_uncached=placement.num_uncached_tokens if computes else 0,
                prefill_s=placement.prefill_s if computes else 0.0,
            )
            first = len(context.routed.generated) + (not computes)
            is_suspect = context.routed.num_suspected > 0
            worker.note_sent(context.routed.wire_id, sent, first=first, suspect=is_suspect)
            if is_suspect:
                self._with_suspects.add(worker.id)
            chain = self._fleet.chains[worker.registration.compat]
            self._index.expect_blocks(worker.id, _hashes(context, chain), now=now)
        session = context.request.session
        if session and context.routed.generates:
            self._sessions.note_placed(
                session,
                context.request.version,
                prefill=placement.prefill,
                decode=placement.decode,
            )

    def take_seat(self, context: RequestContext, placement: Placement) -> None:
        """It will go on from another of its family, where that one is not known yet: until
        `give_seat_back` newcomers find as little room as if it were where it was placed alone."""
        worker = self._workers.get(placement.decode)
        if worker is not None:
            worker.take_seat(context.routed.wire_id, context.num_tokens)

    def give_seat_back(self, context: RequestContext, placement: Placement) -> None:
        worker = self._workers.get(placement.decode)
        if worker is not None:
            worker.give_seat_back(context.routed.wire_id)

    def note_ended(self, context: RequestContext) -> None:
        """The attempt is over, well or not."""
        self._forget_cleared(context)
        for attempt in context.routed.attempts:
            for name in (attempt.prefill, attempt.decode):
                worker = None if name is None else self._workers.get(name)
                if worker is not None:
                    worker.note_ended(context.routed.wire_id)

    def _held(self, context: RequestContext, now: float) -> set[WorkerId]:
        """Those with a suspect that nobody is to join, or kept free for another."""
        cleared = self._cleared
        kept = cleared is not None and cleared.suspect != context.routed.wire_id
        free = cleared.workers if cleared is not None and kept else frozenset()
        if not self._with_suspects:
            return set(free)
        self._with_suspects = {
            name
            for name in self._with_suspects
            if (worker := self._workers.get(name)) is not None and worker.is_held(now=now)
        }
        return self._with_suspects | free

    def _ready(self, names: Collection[WorkerId], context: RequestContext) -> list[KnownWorker]:
        """Those of them that would take it."""
        version, known = context.request.version, (self._workers.get(name) for name in names)
        return [one for one in known if one is not None and one.is_ready and one.serves(version)]

    def _place_suspect(
        self, context: RequestContext, shut: set[WorkerId], now: float
    ) -> Placement | PlacementRefusal:
        """It may have ended a worker: where nobody is, or, when that has taken too long, where
        nobody is new, so that another loss shows whether it did. Newcomers make way for it then."""
        waits = now < context.alone_until
        workers = [w for w in self._ready(self._workers.keys(), context) if w.id not in shut]
        apart = [w for w in workers if (w.is_empty if waits else not w.unheard)]
        if {worker.role for worker in apart} == {worker.role for worker in workers}:
            others = {worker.id for worker in workers} - {worker.id for worker in apart}
            placement = self._place_trusted(context, shut | others, now)
            if isinstance(placement, Placement):
                return placement
        if workers and now < context.alone_until + CLEARED_S:
            if not waits and self._cleared is None:
                self._clear_workers(context, workers)
            return PlacementRefusal(why="held", reason="others are on every worker")
        return self._place_trusted(context, shut, now)

    def _clear_workers(self, context: RequestContext, workers: list[KnownWorker]) -> None:
        """One of each role, that with the fewest others to be heard."""
        order = sorted(workers, key=lambda worker: (len(worker.unheard), worker.id), reverse=True)
        one_of_each = {worker.role: worker.id for worker in order}  # the last one stays
        self._cleared = _Cleared(
            suspect=context.routed.wire_id, workers=frozenset(one_of_each.values())
        )

    def _forget_cleared(self, context: RequestContext) -> None:
        if self._cleared is not None and self._cleared.suspect == context.routed.wire_id:
            self._cleared = None

    def _place_trusted(
        self, context: RequestContext, shut: set[WorkerId], now: float
    ) -> Placement | PlacementRefusal:
        """Where it failed only if nobody else is able; for those who are it waits."""
        doubted = context.suspects | self.avoided
        placement = self._place(context, shut | doubted, now)
        held = self._ready(shut - context.refused - doubted, context)
        if (
            isinstance(placement, PlacementRefusal)
            and placement.why != "saturated"
            and not any(worker.role == "decode" for worker in held)
            and self._ready(doubted - shut, context)
        ):
            placement = self._place(context, shut, now)
        return placement

    def _place(
        self, context: RequestContext, shut: set[WorkerId], now: float
    ) -> Placement | PlacementRefusal:
        """A stream goes on by the numerics that it began with while a worker has them, and room."""
        unlike = self._unlike(context)
        if unlike:
            placement = self._place_reachable(context, shut | unlike, now)
            if isinstance(placement, Placement):
                return placement
        return self._place_reachable(context, shut, now)

    def _unlike(self, context: RequestContext) -> set[WorkerId]:
        """Those of another compat hash than the worker by which its tokens so far came."""
        if context.compat is None or not context.routed.generated:
            return set()
        workers = self._workers.items()
        return {name for name, one in workers if one.registration.compat != context.compat}

    def _place_reachable(
        self, context: RequestContext, shut: set[WorkerId], now: float
    ) -> Placement | PlacementRefusal:
        """Not on two between which no KV moves, if there are others, or the second may prefill."""
        first = placement = self._place_any(context, shut, now)
        for _ in range(MOST_APART):
            if not isinstance(placement, Placement):
                return first
            apart = self._apart(placement, context, shut)
            if apart is None:
                return placement
            shut = shut | {apart}
            placement = self._place_any(context, shut, now)
        return first

    def _apart(
        self, placement: Placement, context: RequestContext, shut: set[WorkerId]
    ) -> WorkerId | None:
        """Of a pair between which no KV moves, the one that is to be passed over: that to which
        none comes from several, if there is another of its role."""
        prefill, decode = placement.prefill, self._workers.get(placement.decode)
        beat = None if decode is None else decode.beat
        if prefill is None or beat is None or prefill not in beat.unreachable:
            return None
        others = self._ready(self._workers.keys() - shut - {placement.decode}, context)
        is_cut_off = len(beat.unreachable) > 1 and any(one.role == "decode" for one in others)
        return placement.decode if is_cut_off else prefill

    def _place_any(
        self, context: RequestContext, shut: set[WorkerId], now: float
    ) -> Placement | PlacementRefusal:
        request, fleet = context.request, self._fleet
        slots = [slot for name in shut if (slot := fleet.slot_of(name)) is not None]
        generates = context.routed.generates
        num_tokens = context.num_tokens if generates else len(request.token_ids)
        max_output_tokens = request.sampling.max_tokens
        demand = Demand(
            num_tokens=num_tokens,
            max_output_tokens=max_output_tokens
            - (len(context.routed.generated) if generates else 0),
            num_reusable=min(num_tokens, context.routed.num_reusable),
        )
        depths, held = self._depths(context, now)
        if not generates:
            return place_prompt(
                fleet, demand, depths=depths, now=now, version=request.version, shut=slots
            )
        session, sessions = request.session, self._sessions
        return place(
            fleet,
            demand,
            depths=depths,
            held=held,
            rules=self._rules_for(context),
            now=now,
            version=request.version,
            shut=slots,
            preferred=sessions.preferred_workers(session, fleet, request.version)
            if session
            else None,
            turn=self._num_placed,
            key=request.id,
        )

    def _rules_for(self, context: RequestContext) -> PlacementRules:
        if context.queue_factor == 1.0:
            return self._rules
        return replace(
            self._rules, worker_queue_s=self._rules.worker_queue_s * context.queue_factor
        )

    def _depths(self, context: RequestContext, now: float) -> tuple[Slots, Slots]:
        """Leading blocks of the prompt on each worker, by slot of the index, and of them those that
        events tell of: only they can be lent. Of each compat hash of its version, whatever the
        number of workers: no worker has blocks of another's chain."""
        fleet, index = self._fleet, self._index
        for slot in list(fleet.not_indexed):
            index_slot = index.slot_of(fleet.name_of(slot))
            if index_slot is not None:
                fleet.set_index_slot(slot, index_slot)
        chains = fleet.chains_of(context.request.version)
        found = [index.depths_and_held(_hashes(context, chain), now=now) for chain in chains]
        depths = _most([each for each, _ in found])
        held = _most([each for _, each in found])
        self._looked_up = context, depths
        return depths, held

    def _found(
        self, context: RequestContext, placement: Placement, now: float
    ) -> FoundPrefix | None:
        """Before the prompt is expected anywhere."""
        fleet = self._fleet
        slot = fleet.slot_of(placement.prefill or placement.decode)
        if slot is None:
            return None
        chain = fleet.chain_of(slot)
        most = (len(context.request.token_ids) - 1) // chain.block_tokens
        looked_up = self._looked_up
        if looked_up is None or looked_up[0] is not context:
            looked_up = context, self._depths(context, now)[0]
        predicted, held = (int(each) for each in fleet.depths_of(slot, looked_up[1]))
        if context.found is None:
            seen = self._seen.see_prompt(_hashes(context, chain))
        else:  # seen when it was placed for the first time
            seen = context.found.num_seen_tokens // chain.block_tokens
        reusable = context.routed.num_reusable // chain.block_tokens
        held = min(most, held, reusable)
        return FoundPrefix(
            num_predicted_tokens=min(most, predicted, reusable) * chain.block_tokens,
            num_held_tokens=held * chain.block_tokens,
            num_seen_tokens=max(held, min(most, seen, reusable)) * chain.block_tokens,
        )


def _most(depths: list[Slots]) -> Slots:
    return depths[0] if len(depths) == 1 else np.maximum.reduce(depths or [NO_SLOTS])


def predicted(placement: Placement) -> Prediction:
    """To compare with what comes of it. Of a prompt that is read and no more, its end."""
    terms, source = placement.terms, placement.prefix_source
    return Prediction(
        first_token_s=float(placement.cost_s if terms is None else terms.first_token_s),
        queue_s=0.0 if terms is None else float(terms.queue_s),
        inter_token_s=0.0 if terms is None else float(terms.inter_token_s),
        num_uncached_tokens=int(placement.num_uncached_tokens),
        num_pulled_tokens=0 if source is None else source.num_tokens,
    )


def _hashes(context: RequestContext, chain: Chain) -> bytes:
    request = context.request
    if chain.compat not in context.hashes:
        reach = prompt_reach(len(request.token_ids), dynamic_after=chain.dynamic_after)
        context.hashes[chain.compat] = packed_hashes(
            (*request.token_ids, *context.routed.generated),
            block_tokens=chain.block_tokens,
            seed=chain_seed(compat=chain.compat, salt=request.salt, reach=reach),
        )
    return context.hashes[chain.compat]
