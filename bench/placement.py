"""Where requests go, by Baton's placement and by published rules of its peers, on recorded traces.

    python -m bench.placement [TRACE.jsonl.gz ...] [--sizes 8 64 512] [--loads 0.5 0.8 1.3]

Real placement and prefix index, simulated workers, virtual time (`bench.placement_sim`). The traces
are Mooncake's of FAST25, which are no part of this repository; without them only the workloads that
mislead are run. A load of 1.0 keeps prefill workers busy all the time if they hit all that was ever
computed: time is compressed to reach it. Large fleets get several copies of a trace, each with
blocks of its own, and the first part of them. Decisions are CPU time of the decision alone.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from bench.placement_sim.fleet import Fleet
from bench.placement_sim.hardware import Hardware
from bench.placement_sim.outcome import HAND_OVER_SLO_S, TPOT_SLO_S, TTFT_SLO_S, sum_up
from bench.placement_sim.rule import Rule
from bench.placement_sim.rules.baton import Baton
from bench.placement_sim.rules.dynamo import Dynamo
from bench.placement_sim.rules.llm_d import LlmD
from bench.placement_sim.rules.plain import AnyOne, LeastRequests, RoundRobin
from bench.placement_sim.rules.sglang import SglangCacheAware
from bench.placement_sim.traces import compress, ideal_cached, lay_over, read_trace
from bench.placement_sim.workload import Workload, misleading
from bench.record import record

RULES: tuple[type[Rule], ...] = (
    Baton, LlmD, Dynamo, SglangCacheAware, LeastRequests, RoundRobin, AnyOne,
)  # fmt: skip
COPY_PER_WORKERS = 8
"""A trace loads so many workers of each role at about twice its own pace: more get more copies."""
MAX_REQUESTS = {8: 8_000, 64: 20_000, 512: 40_000}
"""Of a trace, by size: what some minutes allow."""
MISLEADING_PER_WORKER = 250
SHOWN = ("hits_of_ideal", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "itl_p99_s", "good_part",
         "prefill_max_to_mean", "num_local", "num_pulled", "num_queued", "decision_p50_us",
         "decision_p99_us")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One workload on one fleet: what every rule is given alike."""

    workload: Workload
    size: int
    load: float
    hardware: Hardware


def main() -> None:
    options = _options()
    rules = [rule for rule in RULES if rule.name in options.rules]
    for case in _cases(options):
        _run_case(case, rules)


def _run_case(case: _Case, rules: Sequence[type[Rule]]) -> None:
    requests, hardware = case.workload.requests, case.hardware
    num_blocks = None if hardware.num_blocks is None else 2 * case.size * hardware.num_blocks
    ideal = ideal_cached(requests, hardware)
    shared = ideal_cached(requests, hardware, num_blocks=num_blocks)
    title = f"{case.workload.name} {case.size}+{case.size} load {case.load}"
    print(f"{title} blocks {hardware.num_blocks}: {', '.join(SHOWN)}, seconds")
    results = {}
    for rule in rules:
        begun = time.process_time()
        late = dict(case.workload.late)
        size = case.size
        fleet = Fleet(rule(), hardware=hardware, num_prefill=size, num_decode=size, late=late)
        fleet.run(requests)
        outcome = sum_up(fleet, ideal=ideal, shared=shared)
        results[rule.name] = outcome
        cells = " ".join(f"{outcome[name]:>9}" for name in SHOWN)
        print(f"{rule.name:>15} {cells} {time.process_time() - begun:6.1f}", flush=True)
    record("placement", conditions=_conditions(case), results=results)


def _conditions(case: _Case) -> dict[str, object]:
    requests = case.workload.requests
    return {
        "workload": case.workload.name,
        "num_prefill": case.size,
        "num_decode": case.size,
        "load": case.load,
        "num_requests": len(requests),
        "span_s": round(requests[-1].arrives_at, 1),
        "ttft_slo_s": TTFT_SLO_S,
        "tpot_slo_s": TPOT_SLO_S,
        "hand_over_slo_s": HAND_OVER_SLO_S,
        "hardware": {name: _plain(value) for name, value in asdict(case.hardware).items()},
    }


def _plain(value: object) -> object:
    """As JSON has it."""
    return msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else value


def _cases(options: argparse.Namespace) -> Iterator[_Case]:
    hardware = Hardware(num_blocks=options.blocks)
    for path in options.traces:
        if not path.exists():
            print(f"{path}: no such trace, left out")
            continue
        trace = read_trace(path, block_tokens=hardware.block_tokens)
        name = path.name.partition(".")[0]
        for size in options.sizes:
            num_copies = max(1, size // COPY_PER_WORKERS)
            num_requests = options.requests or MAX_REQUESTS.get(size, 20_000)
            laid = lay_over(trace, num_copies=num_copies, num_requests=num_requests)
            workload = Workload(name=name, requests=laid)
            yield from _at_loads(workload, options.loads, size=size, hardware=hardware)
    if options.misleading:
        for size in options.sizes:
            num_requests = options.requests or MISLEADING_PER_WORKER * size
            for workload in misleading(size, num_requests=num_requests, hardware=hardware):
                yield from _at_loads(workload, options.loads, size=size, hardware=hardware)


def _at_loads(
    workload: Workload, loads: Sequence[float], *, size: int, hardware: Hardware
) -> Iterator[_Case]:
    for load in loads:
        num_prefill = max(1, int(size * workload.part_at_start))
        factor = compress(workload.requests, load=load, num_prefill=num_prefill, hardware=hardware)
        yield _Case(workload=workload.stretch(factor), size=size, load=load, hardware=hardware)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="*", help="Mooncake's, packed or not")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 64], help="of each role")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.3])
    parser.add_argument("--rules", nargs="+", default=[rule.name for rule in RULES])
    parser.add_argument("--blocks", type=int, help="a worker's memory; as much as comes")
    parser.add_argument("--requests", type=int, help="the first so many of each workload")
    parser.add_argument("--misleading", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
