"""Ways to pick workers that look at no cost, to compare with: each gives a pair where it can."""

from typing import Literal, assert_never

import numpy as np
import xxhash
from numpy.typing import NDArray

from router.placement import cost
from router.placement.fleet import Fleet
from router.placement.option import FIRST_TOKENS, OptionQuery

Policy = Literal["cost", "round_robin", "least_loaded", "random"]
"""`cost`: the least seconds. `round_robin`: each in its turn, by name. `least_loaded`: the prefill
worker with the shortest queue, the decode worker with the fewest sequences. `random`: by the
request's id alone."""
Blind = Literal["round_robin", "least_loaded", "random"]
_Slots = NDArray[np.int64]


def pick_workers(
    fleet: Fleet, question: OptionQuery, policy: Blind, *, turn: int, key: str
) -> tuple[int, ...]:
    """Slots of a decode worker and of a prefill worker that can hand over to it, if any can. Only
    for a question that some decode worker is able to answer."""
    rows, demand = fleet.rows[: fleet.num_slots], question.demand
    is_open = question.open[: fleet.num_slots] != 0
    is_decode, longest = rows["is_decode"] != 0, rows["longest_tokens"]
    total, first = demand.num_tokens + demand.max_output_tokens, demand.num_tokens + FIRST_TOKENS
    decodes = _by_name(fleet, is_open & is_decode & (total <= longest))
    decode = _pick(fleet, question, decodes, policy, turn=turn, key=f"decode {key}")
    is_same = rows["compat"] == rows["compat"][decode]
    can_reach = (rows["transports"] & rows["transports"][decode]) != 0
    able = is_open & ~is_decode & (first <= longest) & is_same & can_reach
    prefills = _by_name(fleet, able)
    if not len(prefills):
        return (decode,)
    return decode, _pick(fleet, question, prefills, policy, turn=turn, key=f"prefill {key}")


def _by_name(fleet: Fleet, chosen: NDArray[np.bool_]) -> _Slots:
    slots = np.flatnonzero(chosen)
    return slots[np.argsort(fleet.rows["rank"][slots])]


def _pick(
    fleet: Fleet, question: OptionQuery, slots: _Slots, policy: Blind, *, turn: int, key: str
) -> int:
    match policy:
        case "round_robin":
            index = turn % len(slots)
        case "random":
            index = xxhash.xxh3_64_intdigest(key.encode()) % len(slots)
        case "least_loaded":
            rows = fleet.rows[slots]
            queue_s = cost.queue_s(rows, now=question.now)
            load = np.where(rows["is_decode"] != 0, rows["running"], queue_s)
            index = int(load.argmin())
        case _:
            assert_never(policy)
    return int(slots[index])
