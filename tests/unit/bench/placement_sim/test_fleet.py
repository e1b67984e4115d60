"""A simulated fleet: what takes how long, and that whatever comes in comes out."""

from collections.abc import Callable, Sequence

import pytest

from bench.placement_sim.fleet import Fleet
from bench.placement_sim.hardware import Hardware
from bench.placement_sim.outcome import sum_up
from bench.placement_sim.request import Request, Route
from bench.placement_sim.rule import Rule
from bench.placement_sim.rules.baton import Baton
from bench.placement_sim.rules.dynamo import Dynamo
from bench.placement_sim.rules.llm_d import LlmD
from bench.placement_sim.rules.peer import Peer
from bench.placement_sim.rules.plain import AnyOne, LeastRequests, RoundRobin
from bench.placement_sim.rules.sglang import SglangCacheAware
from bench.placement_sim.traces import ideal_cached
from bench.placement_sim.workload import misleading

HARDWARE = Hardware()
RULES: list[type[Rule]] = [
    Baton, LlmD, Dynamo, SglangCacheAware, LeastRequests, RoundRobin, AnyOne,
]  # fmt: skip


class Told(Peer):
    """Places as it is told."""

    name = "told"

    def __init__(self, route_of: Callable[[Request], Route | None]) -> None:
        super().__init__()
        self._route_of = route_of

    def place_request(self, request: Request, *, now: float) -> Route | None:
        return self._route_of(request)


def ask(number: int, *blocks: int, at: float = 0.0, num_output: int = 1) -> Request:
    num_tokens = len(blocks) * 512 + 100
    return Request(
        number=number, arrives_at=at, num_tokens=num_tokens, num_output=num_output, blocks=blocks
    )


def run(
    requests: Sequence[Request],
    route_of: Callable[[Request], Route | None],
    *,
    hardware: Hardware = HARDWARE,
    size: int = 2,
) -> Fleet:
    fleet = Fleet(Told(route_of), hardware=hardware, num_prefill=size, num_decode=size)
    fleet.run(requests)
    return fleet


APART = Route(prefill=0, decode=0)
ALONE = Route(prefill=None, decode=0)


def test_a_prompt_alone_takes_what_the_step_model_says() -> None:
    fleet = run([ask(0, *range(20))], lambda request: APART)
    expected_s = HARDWARE.prefill_s(num_tokens=20 * 512 + 100, num_cached=0) + HARDWARE.message_s
    assert fleet.journeys[0].ttft_s == pytest.approx(expected_s)


def test_what_is_cached_is_not_computed_again() -> None:
    fleet = run([ask(0, *range(20)), ask(1, *range(20), 99, at=10.0)], lambda request: APART)
    assert fleet.journeys[1].num_cached == 20 * 512
    expected_s = HARDWARE.prefill_s(num_tokens=21 * 512 + 100, num_cached=20 * 512)
    assert fleet.journeys[1].ttft_s == pytest.approx(expected_s + HARDWARE.message_s)


def test_of_two_that_come_together_the_second_waits_and_finds_the_first_ones_blocks() -> None:
    hardware = Hardware(prefill_step_tokens=2048)
    blocks = range(8)
    together = [ask(0, *blocks), ask(1, *blocks)]
    fleet = run(together, lambda request: APART, hardware=hardware)
    first, second = fleet.journeys
    assert first.num_cached == 0
    assert second.num_cached == 8 * 512
    assert second.first_token_at > first.first_token_at - 1e-9


def test_a_stream_takes_a_step_a_token_and_a_hand_over() -> None:
    fleet = run([ask(0, 1, 2, num_output=101)], lambda request: APART)
    journey = fleet.journeys[0]
    step_s = HARDWARE.step_s(num_tokens=0, num_attended=1124, num_sequences=1)
    moved_s = HARDWARE.latency_s + 1124 * HARDWARE.token_bytes / HARDWARE.bytes_per_s
    assert journey.ended_at - journey.first_token_at == pytest.approx(
        100 * step_s + moved_s, rel=1e-3
    )


def test_a_prompt_on_a_decode_worker_makes_the_streams_there_wait() -> None:
    stream, prompt = ask(0, 1, num_output=200), ask(1, *range(10, 30), at=1.0)
    fleet = run([stream, prompt], lambda request: ALONE if request.number else APART)
    apart = run([stream], lambda request: APART)
    later_s = fleet.journeys[0].ended_at - apart.journeys[0].ended_at
    chunk_s = HARDWARE.step.token_s * 512
    assert later_s > 20 * chunk_s * 0.9
    assert max(fleet.decodes[0].engine.itl) > HARDWARE.step.fixed_s + chunk_s


def test_a_prefix_is_pulled_from_a_third_worker_as_far_as_it_is_there() -> None:
    def route_of(request: Request) -> Route:
        if request.number == 0:
            return APART
        return Route(prefill=1, decode=1, source=("prefill-0000", 20 * 512))

    fleet = run([ask(0, *range(10)), ask(1, *range(20), at=10.0)], route_of)
    pulled = fleet.journeys[1]
    assert pulled.num_pulled == pulled.num_cached == 10 * 512
    again = HARDWARE.prefill_s(num_tokens=20 * 512 + 100, num_cached=0)
    assert pulled.ttft_s < again


def test_whoever_is_refused_waits_for_a_report() -> None:
    asked: list[int] = []

    def route_of(request: Request) -> Route | None:
        asked.append(request.number)
        return APART if len(asked) > 1 else None

    fleet = run([ask(0, 1), ask(1, 2, at=0.01)], route_of)
    assert asked == [0, 0, 1], "again when the first report came"
    assert fleet.num_queued == 1
    assert all(journey.ended_at > 0 for journey in fleet.journeys)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("num_blocks", [None, 60])
def test_every_rule_serves_all_to_the_end(rule: type[Rule], num_blocks: int | None) -> None:
    hardware = Hardware(num_blocks=num_blocks)
    for workload in misleading(2, num_requests=60, hardware=hardware):
        late = dict(workload.late)
        fleet = Fleet(rule(), hardware=hardware, num_prefill=2, num_decode=2, late=late)
        fleet.run(workload.requests)
        assert len(fleet.journeys) == 60
        assert all(
            each.ended_at >= each.first_token_at > each.request.arrives_at
            for each in fleet.journeys
        )
        assert all(worker.engine.cache.num_held == 0 for worker in fleet.workers)
        assert all(worker.num_landing == 0 for worker in fleet.workers)


def test_hits_are_counted_beside_the_best_cache_of_all() -> None:
    requests = [ask(0, *range(10)), ask(1, *range(10), at=10.0)]
    fleet = run(requests, lambda request: APART)
    ideal = ideal_cached(requests, HARDWARE)
    summary = sum_up(fleet, ideal=ideal, shared=ideal)
    assert summary["hits_of_ideal"] == 1.0
    assert summary["num_local"] == 0
    spread = run(requests, lambda request: Route(prefill=request.number, decode=0))
    assert sum_up(spread, ideal=ideal, shared=ideal)["hits_of_ideal"] == 0.0
