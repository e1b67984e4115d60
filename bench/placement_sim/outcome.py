"""What clients and an operator saw of one run."""

from collections import defaultdict
from collections.abc import Sequence

from bench.placement_sim.fleet import Fleet
from bench.placement_sim.request import Journey

TTFT_SLO_S, TPOT_SLO_S, HAND_OVER_SLO_S = 10.0, 0.1, 0.2
"""A good request has its first token within the first, and the others within the second for each,
the third allowed once. The second is the strictest of Mooncake's thresholds; a prompt of 80,000
tokens takes 10 s alone."""


def sum_up(fleet: Fleet, *, ideal: Sequence[int], shared: Sequence[int]) -> dict[str, float | None]:
    """Of a fleet that has run; `ideal`: as of `traces.ideal_cached`, by request number, and
    `shared` the same of one cache as large as all of the fleet's together. A pulled token is a hit:
    nobody computed it."""
    journeys = fleet.journeys
    ttft = [journey.ttft_s for journey in journeys]
    tpot = [journey.tpot_s for journey in journeys if journey.request.num_output > 1]
    good = [journey for journey in journeys if _is_good(journey)]
    span_s = max(journey.request.arrives_at for journey in journeys)
    busy = [worker.engine.busy_s for worker in fleet.prefills]
    num_cached = sum(journey.num_cached for journey in journeys)
    local = sum(j.route is not None and j.route.prefill is None for j in journeys)
    return {
        "hits_of_ideal": round(num_cached / max(1, sum(ideal)), 4),
        "hits_of_shared": round(num_cached / max(1, sum(shared)), 4),
        "ttft_p50_s": round(percentile(ttft, 0.50), 3),
        "ttft_p99_s": round(percentile(ttft, 0.99), 3),
        "ttft_mean_s": round(sum(ttft) / len(ttft), 3),
        "tpot_p50_s": round(percentile(tpot, 0.50), 4),
        "tpot_p99_s": round(percentile(tpot, 0.99), 4),
        "itl_p99_s": _itl(fleet, 0.99),
        "good_part": round(len(good) / len(journeys), 4),
        "good_per_s": round(len(good) / span_s, 3),
        "prefill_max_to_mean": round(max(busy) * len(busy) / max(sum(busy), 1e-9), 3),
        "num_requests": len(journeys),
        "num_local": local,
        "num_pulled": sum(j.num_pulled > 0 for j in journeys),
        "num_queued": fleet.num_queued,
        "late_share": _late_share(fleet),
        "decision_p50_us": round(1e6 * percentile(fleet.decision_s, 0.50), 1),
        "decision_p99_us": round(1e6 * percentile(fleet.decision_s, 0.99), 1),
    }


def _late_share(fleet: Fleet) -> float | None:
    """How busy prefill workers that came late were, beside the others since then; None: all were
    there from the start."""
    late = [worker for worker in fleet.prefills if worker.came_at > 0]
    others = [worker for worker in fleet.prefills if worker.came_at == 0]
    if not late:
        return None
    ours = sum(worker.engine.busy_s for worker in late) / len(late)
    theirs = sum(worker.engine.busy_s - worker.busy_before_s for worker in others) / len(others)
    return round(ours / max(theirs, 1e-9), 3)


def _is_good(journey: Journey) -> bool:
    streamed_s = journey.ended_at - journey.first_token_at
    allowed_s = HAND_OVER_SLO_S + TPOT_SLO_S * (journey.request.num_output - 1)
    return journey.ttft_s <= TTFT_SLO_S and streamed_s <= allowed_s


def percentile(values: Sequence[float], part: float) -> float:
    """0.0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _itl(fleet: Fleet, part: float) -> float:
    """Of all tokens but those that waited for a hand-over."""
    tokens: defaultdict[float, float] = defaultdict(float)
    for worker in fleet.decodes:
        for step_s, num_tokens in worker.engine.itl.items():
            tokens[step_s] += num_tokens
    left = part * sum(tokens.values())
    for step_s in sorted(tokens):
        left -= tokens[step_s]
        if left <= 0:
            return step_s
    return 0.0
