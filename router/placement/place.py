"""Chooses the workers of one request, and says why.

Every cost is in seconds: what this request waits for, plus what it makes others wait for. Either a
prefill worker computes the prompt and a decode worker fetches its KV, or the decode worker does
both (conditional disaggregation). The terms are in cost.py; they order candidates, and promise
nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocol.ids import WorkerId
from protocol.messages import OfAttempt, PrefixSource, ServedVersion
from router.placement.cost import Breakdown, Demand
from router.placement.fleet import Fleet
from router.placement.option import Option, OptionQuery, Options
from router.placement.options import find_options
from router.placement.policies import Policy, pick_workers
from router.placement.reason import explain

JOINED_FACTOR = 2.0
"""Times `worker_queue_s`, that the soonest worker may have before a request while dearer ones are
free. Beyond it the request waits in the router, where it can still go to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """How an operator wants requests placed; `router.settings` has the reasons."""

    policy: Policy = "cost"
    local_prefill: Literal["auto", "never"] = "auto"
    inter_token_target_s: float = 0.1
    worker_queue_s: float = 2.0
    session_slack_s: float = 0.5


DEFAULT_RULES = PlacementRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """Workers of a session: those of its last request, or those that every router would name."""

    decode: WorkerId
    prefill: WorkerId | None
    """None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`prefill` None: `decode` works alone. Whoever computes the prompt fetches from
    `prefix_source` first, and computes `num_uncached_tokens`."""

    prefill: WorkerId | None
    decode: WorkerId
    reason: str
    cost_s: float
    num_uncached_tokens: int
    prefill_s: float = 0.0
    """Predicted, of computing those."""
    prefix_source: PrefixSource | None = None
    terms: Breakdown | None = None
    """None where they were not found by a comparison."""
    fork_of: OfAttempt | None = None
    """A request on `decode` from whose KV it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRefusal:
    """`too_long`: no candidate can ever hold the request. `held`: not now, to keep it, or another,
    apart from others. `saturated`: every candidate has as much before it as it should; it waits
    here, where it can still go to whoever is free first."""

    why: Literal["no_decode_worker", "too_long", "held", "saturated"]
    reason: str


def place(
    fleet: Fleet,
    demand: Demand,
    *,
    depths: NDArray[np.uint32],
    held: NDArray[np.uint32] | None = None,
    rules: PlacementRules,
    now: float,
    version: ServedVersion | None = None,
    shut: Iterable[int] = (),
    preferred: Preferred | None = None,
    turn: int = 0,
    key: str = "",
) -> Placement | PlacementRefusal:
    """Where a request goes that generates, among the workers of `version`, None: among all, but to
    none of the slots `shut` to it.

    `depths`: leading blocks of its prompt that each worker has, by slot of the prefix index;
    `held`: those of them that it could lend now, None: all. `turn` counts placements and `key`
    names the request, for the policies that go by them.
    """
    fleet.guess_speeds(now=now)
    question = OptionQuery(
        demand=demand,
        open=open_workers(fleet, version, shut),
        depths=depths,
        held=depths if held is None else held,
        now=now,
        inter_token_target_s=rules.inter_token_target_s,
        worker_queue_s=rules.worker_queue_s,
        kept=_kept(fleet, preferred),
    )
    options = find_options(fleet, question)
    if not options.has_able:
        return refuse(fleet, question.open, demand, only_decode=True)
    if _is_saturated(options, rules):
        return _saturated(rules)
    if rules.policy == "cost":
        placement = _cheapest(fleet, demand, options, rules)
        assert placement.terms is not None
        is_late = placement.terms.queue_s > JOINED_FACTOR * rules.worker_queue_s
        return _saturated(rules) if is_late else placement
    pair = pick_workers(fleet, question, rules.policy, turn=turn, key=key)
    chosen = find_options(fleet, replace(question, open=_only(fleet, pair)))
    option = chosen.pair or chosen.alone
    assert option is not None, "a policy picked workers that cannot serve"
    return _placement(fleet, demand, option, note=f"by {rules.policy}")


def open_workers(
    fleet: Fleet, version: ServedVersion | None, shut: Iterable[int]
) -> NDArray[np.uint8]:
    """By slot: 1 for the ready ones of that version, None: of any, that are not shut."""
    ready, slots = fleet.ready_of(version), list(shut)
    if not slots:
        return ready
    ready = ready.copy()
    ready[slots] = 0
    return ready


def refuse(
    fleet: Fleet, ready: NDArray[np.uint8], demand: Demand, *, only_decode: bool
) -> PlacementRefusal:
    """Why none of these can ever hold it."""
    rows = fleet.rows[ready != 0]
    if only_decode:
        rows = rows[rows["is_decode"] != 0]
    if not len(rows):
        return PlacementRefusal(why="no_decode_worker", reason="no decode worker")
    total, room = demand.num_tokens + demand.max_output_tokens, int(rows["longest_tokens"].max())
    text = f"{total} tokens with the answer; the largest decode worker holds {room}"
    return PlacementRefusal(why="too_long", reason=text)


def _kept(fleet: Fleet, preferred: Preferred | None) -> tuple[int, int]:
    if preferred is None:
        return -1, -1
    decode = fleet.slot_of(preferred.decode)
    prefill = None if preferred.prefill is None else fleet.slot_of(preferred.prefill)
    return -1 if prefill is None else prefill, -1 if decode is None else decode


def _only(fleet: Fleet, slots: Sequence[int]) -> NDArray[np.uint8]:
    ready = np.zeros_like(fleet.ready)
    ready[list(slots)] = 1
    return ready


def _saturated(rules: PlacementRules) -> PlacementRefusal:
    reason = f"every worker has {rules.worker_queue_s:g} s of work before it, or no room"
    return PlacementRefusal(why="saturated", reason=reason)


def _is_saturated(options: Options, rules: PlacementRules) -> bool:
    """No option has a short queue and room now."""
    if options.pair is None:
        return not options.has_free_alone
    may_be_local = rules.local_prefill == "auto" and options.has_free_calm
    return not (options.has_free_pair or may_be_local)


def _cheapest(fleet: Fleet, demand: Demand, options: Options, rules: PlacementRules) -> Placement:
    """Of all, or of those with the session's workers where that is hardly later."""
    best, other, note = _compare(options.pair, options.alone, options.calm, rules)
    assert best is not None, "there is an able decode worker"
    kept, kept_other, _ = _compare(
        options.kept_pair, options.kept_alone, options.kept_calm, rules, has_pair=options.pair
    )
    latest_s = best.terms.first_token_s + rules.session_slack_s
    if kept is not None and kept.terms.first_token_s <= latest_s:
        best, other, note = kept, best if kept_other is None else kept_other, "with its session"
    return _placement(fleet, demand, best, other=other, note=note)


def _compare(
    pair: Option | None,
    alone: Option | None,
    calm: Option | None,
    rules: PlacementRules,
    *,
    has_pair: Option | None = None,
) -> tuple[Option | None, Option | None, str]:
    """The cheaper option, the other, and what to say of them. A decode worker computes a prompt
    only where no stream of its waits too long for that, or nobody else could."""
    if pair is None:
        if has_pair is None:
            return alone, None, "no prefill worker"
        return (None if rules.local_prefill == "never" else calm), None, ""
    if rules.local_prefill == "never":
        return pair, calm or alone, "(off)"
    if calm is None:
        return pair, alone, "(stalls streams)"
    if pair.terms.cost_s < calm.terms.cost_s:
        return pair, calm, ""
    return calm, pair, ""


def _placement(
    fleet: Fleet, demand: Demand, option: Option, *, other: Option | None = None, note: str = ""
) -> Placement:
    source = None
    if option.num_pulled:
        source = fleet.prefix_source(
            option.source, num_tokens=demand.num_tokens - option.num_uncached
        )
    return Placement(
        prefill=None if option.prefill < 0 else fleet.name_of(option.prefill),
        decode=fleet.name_of(option.decode),
        reason=explain(fleet, demand, option, other=other, note=note),
        cost_s=option.terms.cost_s,
        num_uncached_tokens=option.num_uncached,
        prefill_s=option.terms.prefill_s,
        prefix_source=source,
        terms=option.terms,
    )
