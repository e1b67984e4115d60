"""The options of a request by numpy, over all pairs: what options.c does, where there is no C."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.placement import cost
from router.placement.cost import Breakdown, Demand, Start
from router.placement.fleet import Fleet
from router.placement.option import FIRST_TOKENS, Option, OptionQuery, Options
from router.placement.row import Rows

Mask = NDArray[np.bool_]
Slots = NDArray[np.int64]
_TERMS = tuple(field.name for field in fields(Breakdown))


def find_options_twin(fleet: Fleet, question: OptionQuery) -> Options:
    search = _Search(fleet, question)
    pairs, alone = search.pairs(), search.alone()
    kept_prefill, kept_decode = question.kept
    pair_kept = pairs.decode == kept_decode
    if kept_prefill >= 0:
        pair_kept = pair_kept & (pairs.prefill == kept_prefill)
    alone_kept = alone.decode == kept_decode
    return Options(
        has_decode=search.has_decode,
        has_able=len(search.decodes) > 0,
        has_free_pair=bool((pairs.is_valid & pairs.is_free).any()),
        has_free_alone=bool(alone.is_free.any()),
        has_free_calm=bool((alone.is_free & alone.is_calm).any()),
        pair=search.least(pairs, pairs.is_valid),
        alone=search.least(alone, alone.is_valid),
        calm=search.least(alone, alone.is_calm),
        kept_pair=search.least(pairs, pairs.is_valid & pair_kept),
        kept_alone=search.least(alone, alone_kept),
        kept_calm=search.least(alone, alone.is_calm & alone_kept),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """Options in arrays, all of one shape or broadcast to it."""

    decode: Slots
    prefill: Slots
    start: Start
    source: Slots
    terms: Breakdown
    is_valid: Mask
    is_free: Mask
    is_calm: Mask


class _Search:
    def __init__(self, fleet: Fleet, question: OptionQuery) -> None:
        self._question = question
        self._demand = demand = question.demand
        rows = self._rows = fleet.rows[: fleet.num_slots]
        self._open = question.open[: fleet.num_slots] != 0
        self._cached = cached_tokens(rows, question.depths, demand)
        self._held = cached_tokens(rows, question.held, demand)
        is_decode, longest = rows["is_decode"] != 0, rows["longest_tokens"]
        total = demand.num_tokens + demand.max_output_tokens
        first = demand.num_tokens + FIRST_TOKENS
        self.has_decode = bool((self._open & is_decode).any())
        self.decodes = np.flatnonzero(self._open & is_decode & (total <= longest))
        self._prefills = np.flatnonzero(self._open & ~is_decode & (first <= longest))
        self._sources = self._find_sources()

    def alone(self) -> _Ways:
        slots, demand = self.decodes, self._demand
        rows, cached = self._rows[slots], self._cached[slots]
        start, source, is_free = self._start(slots)
        terms = cost.alone(rows, demand, start)
        needed = demand.num_tokens + demand.expected_output
        is_quiet = terms.longest_step_s <= self._question.inter_token_target_s
        return _Ways(
            decode=slots,
            prefill=np.full_like(slots, -1),
            start=start,
            source=source,
            terms=terms,
            is_valid=np.ones(len(slots), np.bool_),
            is_free=is_free & (cost.missing_tokens(rows, needed, cached) <= 0),
            is_calm=(rows["running"] <= 0) | is_quiet,
        )

    def pairs(self) -> _Ways:
        """Of shape `[decode, prefill]`."""
        demand = self._demand
        start, source, is_free = self._start(self._prefills)
        prefill_P, decode_D1 = self._rows[self._prefills], self._rows[self.decodes][:, None]
        cached_D1 = self._cached[self.decodes][:, None]
        latency_s, rate = self._links(self.decodes, self._prefills)
        link = {"latency_s": latency_s, "rate": rate}
        terms = cost.pair(prefill_P, decode_D1, demand, start, num_cached=cached_D1, **link)
        is_same = prefill_P["compat"] == decode_D1["compat"]
        can_reach = (prefill_P["transports"] & decode_D1["transports"]) != 0
        needed = demand.num_tokens + demand.expected_output
        has_room = cost.missing_tokens(decode_D1, needed, cached_D1) <= 0
        return _Ways(
            decode=self.decodes[:, None],
            prefill=self._prefills,
            start=start,
            source=source,
            terms=terms,
            is_valid=is_same & can_reach,
            is_free=is_free & has_room,
            is_calm=np.zeros(1, np.bool_),
        )

    def least(self, ways: _Ways, allowed: Mask) -> Option | None:
        """The cheapest of those allowed, ties by name of decode and prefill."""
        cost_s, allowed = np.broadcast_arrays(ways.terms.cost_s, allowed)
        where = np.argwhere(allowed)
        if not len(where):
            return None
        shape, ranks = cost_s.shape, self._rows["rank"]
        decode, prefill = (np.broadcast_to(one, shape) for one in (ways.decode, ways.prefill))
        cheapest = where[cost_s[allowed] == cost_s[allowed].min()]
        best = min(
            (tuple(at) for at in cheapest),
            key=lambda at: (ranks[decode[at]], ranks[prefill[at]] if prefill[at] >= 0 else -1),
        )

        def of(values: Any) -> Any:
            return np.broadcast_to(values, shape)[best].item()

        return Option(
            decode=of(ways.decode),
            prefill=of(ways.prefill),
            source=of(ways.source),
            num_uncached=int(of(ways.start.num_uncached)),
            num_pulled=int(of(ways.start.num_pulled)),
            terms=Breakdown(*(of(getattr(ways.terms, name)) for name in _TERMS)),
        )

    def _start(self, slots: Slots) -> tuple[Start, Slots, Mask]:
        """And from where it pulls, and whether its queue and its pool let it begin."""
        rows, cached, demand = self._rows[slots], self._cached[slots], self._demand
        now = self._question.now
        sources = self._sources[rows["compat"]]
        can_pull = (sources >= 0) & (sources != slots)
        lender = self._rows[np.where(can_pull, sources, slots)]
        can_pull &= (lender["transports"] & rows["transports"]) != 0
        block = lender["block_tokens"]
        there = np.minimum(self._held[np.where(can_pull, sources, slots)], demand.num_tokens - 1)
        lent = np.floor(there / block) * block
        lent = np.where(can_pull, lent, 0.0)
        latency_s, rate = self._links(slots, sources)
        diagonal = np.arange(len(slots))
        pull_s = cost.fetch_s(
            rows,
            lent - cached,
            latency_s=latency_s[diagonal, diagonal],
            rate=rate[diagonal, diagonal],
        )
        start = cost.start(rows, demand, num_cached=cached, lent=lent, pull_s=pull_s, now=now)
        source = np.where(start.num_pulled > 0, sources, -1)
        missing = cost.missing_tokens(rows, demand.num_tokens, cached)
        is_short = cost.queue_s(rows, now=now) <= self._question.worker_queue_s
        return start, source, is_short & (missing <= 0)

    def _find_sources(self) -> Slots:
        """By compat hash, the ready worker that has most of the prompt and lends it; -1: none."""
        sources = np.full(int(self._rows["compat"].max(initial=0)) + 1, -1)
        lenders = np.flatnonzero(self._open & (self._rows["lends"] != 0))
        order = np.lexsort(
            (
                self._rows["rank"][lenders],
                self._rows["waiting_tokens"][lenders],
                -self._held[lenders],
            )
        )
        for slot in reversed(lenders[order]):
            sources[self._rows["compat"][slot]] = slot
        return sources

    def _links(self, to: Slots, peers: Slots) -> tuple[NDArray[Any], NDArray[Any]]:
        """Latency and bytes a second of fetches, `[to, peer]`: of the pair, else of `to`."""
        shape = (len(to), len(peers))
        latency_s = np.broadcast_to(self._rows["latency_s"][to][:, None], shape).copy()
        rate = np.broadcast_to(self._rows["bytes_per_s"][to][:, None], shape).copy()
        for index, slot in enumerate(to):
            row = self._rows[slot]
            for peer, own_latency_s, own_rate in zip(
                *(row[name][: row["num_peers"]] for name in _PEERS), strict=True
            ):
                latency_s[index, (peers == peer) & (peer >= 0)] = own_latency_s
                rate[index, (peers == peer) & (peer >= 0)] = own_rate
        return latency_s, rate


_PEERS = ("peers", "peer_latency_s", "peer_bytes_per_s")


def cached_tokens(rows: Rows, depths: NDArray[np.uint32], demand: Demand) -> NDArray[np.float64]:
    """Of the prompt, by row, in whole blocks but where less may be reused."""
    at = rows["index_slot"]
    known = (at >= 0) & (at < len(depths))
    blocks = np.zeros(len(rows))
    blocks[known] = depths[at[known]]
    cached: NDArray[np.float64] = blocks * rows["block_tokens"]
    return np.minimum(cached, demand.num_reusable)
