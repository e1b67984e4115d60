from collections import Counter

from support.standing import Standing, demand_of, depths_of, fleet_of, placed, way

from router.placement.place import Placement, PlacementRules, place
from router.placement.policies import Policy

HERE = [Standing(name=f"{role}-{n}") for role in ("prefill", "decode") for n in range(3)]


def ways(policy: Policy, *here: Standing, num: int = 6) -> list[str]:
    fleet, found = fleet_of(*here), []
    for turn in range(num):
        placement = place(
            fleet,
            demand_of(2_000),
            depths=depths_of(*here),
            rules=PlacementRules(policy=policy),
            now=0.0,
            turn=turn,
            key=f"request-{turn}",
        )
        assert isinstance(placement, Placement)
        found.append(way(placement))
    return found


def test_round_robin_gives_each_its_turn_by_name() -> None:
    turns = [f"prefill-{n}>decode-{n}" for n in range(3)]
    assert ways("round_robin", *reversed(HERE)) == turns + turns


def test_random_is_spread_and_the_same_again() -> None:
    found = ways("random", *HERE, num=90)
    assert found == ways("random", *HERE, num=90)
    pairs = Counter(found)
    assert len(pairs) == 9 and max(pairs.values()) < 25


def test_least_loaded_looks_at_the_queue_and_at_the_streams_alone() -> None:
    here = [
        HERE[0].but(waiting=900, cached=1_984), HERE[1].but(waiting=800), HERE[2].but(waiting=850),
        HERE[3].but(running=2), HERE[4].but(running=3), HERE[5].but(running=1, waiting=9_000),
    ]  # fmt: skip
    assert ways("least_loaded", *here, num=1) == ["prefill-1>decode-2"]


def test_only_workers_that_can_hand_over_are_paired() -> None:
    other = [one.but(compat=str("-1" in one.name)) for one in HERE]
    for policy in ("round_robin", "random"):
        pairs = [found.split(">") for found in ways(policy, *other, num=40)]
        assert all(("-1" in prefill) == ("-1" in decode) for prefill, decode in pairs)
    nccl = [one.but(transports=("nccl",)) for one in HERE[:3]]
    assert ways("round_robin", *nccl, *HERE[3:], num=3) == ["decode-0", "decode-1", "decode-2"]


def test_another_policy_says_so_and_what_it_costs() -> None:
    placement = placed(*HERE, policy="round_robin")
    assert placement.reason.startswith(
        "prefill-0>decode-0; uncached 2000 of 2000 tokens; by round_robin; first token "
    )
    assert placement.terms is not None and placement.cost_s > 0
