"""Of several versions in one fleet, a request sees the workers of its own alone."""

import msgspec
import pytest
from support.standing import (
    STEP,
    Standing,
    demand_of,
    depths_of,
    fleet_of,
    version_of,
    way,
)
from support.words import registration

from protocol.ids import WorkerId
from router.placement.fleet import Fleet
from router.placement.place import Placement, PlacementRefusal, PlacementRules, Preferred, place
from router.placement.policies import Policy
from router.placement.prompt import place_prompt
from router.placement.sessions import Sessions, rendezvous

OLD, NEW, GONE = version_of("old"), version_of("new"), version_of("gone")
FLEET = (
    Standing(name="prefill-0", revision="old"),
    Standing(name="decode-0", revision="old", waiting=8_000, running=9, context=9_000),
    Standing(name="prefill-1", revision="new", waiting=9_000),
    Standing(name="decode-1", revision="new"),
)


@pytest.mark.parametrize("policy", ["cost", "round_robin", "least_loaded", "random"])
def test_a_request_goes_to_workers_of_its_version_however_busy(policy: Policy) -> None:
    for version, number in ((OLD, 0), (NEW, 1)):
        found = place(
            fleet_of(*FLEET),
            demand_of(2_000),
            depths=depths_of(*FLEET),
            rules=PlacementRules(policy=policy, worker_queue_s=1e9, local_prefill="never"),
            now=0.0,
            version=version,
        )
        assert isinstance(found, Placement)
        assert way(found) == f"prefill-{number}>decode-{number}"


def test_a_version_that_nobody_serves_has_no_decode_worker() -> None:
    for version in (GONE, msgspec.structs.replace(OLD, text="another")):
        found = place(
            fleet_of(*FLEET),
            demand_of(2_000),
            depths=depths_of(*FLEET),
            rules=PlacementRules(),
            now=0.0,
            version=version,
        )
        assert isinstance(found, PlacementRefusal) and found.why == "no_decode_worker"


def test_a_prompt_that_is_read_is_read_by_its_version() -> None:
    for version, name in ((OLD, "prefill-0"), (NEW, "prefill-1")):
        found = place_prompt(
            fleet_of(*FLEET), demand_of(2_000), depths=depths_of(*FLEET), now=0.0, version=version
        )
        assert isinstance(found, Placement) and found.decode == name


def test_a_prefix_is_pulled_from_its_own_version() -> None:
    """Though the other's KV layout is the same."""
    lender = Standing(name="decode-2", revision="new", cached=1_600, kv_address="tcp://l:1")
    near = FLEET[3].but(rate=1e10)
    fleet = (near, lender.but(waiting=90_000))

    def source(*fleet: Standing) -> WorkerId | None:
        found = place(
            fleet_of(*fleet),
            demand_of(2_000),
            depths=depths_of(*fleet),
            rules=PlacementRules(worker_queue_s=1e9),
            now=0.0,
            version=NEW,
        )
        assert isinstance(found, Placement) and found.decode == "decode-1"
        return None if found.prefix_source is None else found.prefix_source.worker

    assert source(*fleet) == "decode-2"
    assert source(near, fleet[1].but(revision="old")) is None


def test_a_session_prefers_workers_of_the_version_that_it_asks_for_now() -> None:
    fleet, sessions = fleet_of(*FLEET), Sessions()
    for version, number in ((OLD, 0), (NEW, 1)):
        own = Preferred(decode=WorkerId(f"decode-{number}"), prefill=WorkerId(f"prefill-{number}"))
        assert rendezvous("s", fleet, version) == own
        assert sessions.preferred_workers("s", fleet, version) == own
    sessions.note_placed("s", OLD, prefill=None, decode=WorkerId("decode-0"))
    last = Preferred(decode=WorkerId("decode-0"), prefill=None)
    assert sessions.preferred_workers("s", fleet, OLD) == last
    assert sessions.preferred_workers("s", fleet, NEW) == own
    assert sessions.preferred_workers("s", fleet, GONE) is None


def test_who_has_measured_nothing_is_guessed_by_its_own_version() -> None:
    fast = Standing(name="decode-0", revision="old")
    slow_step = msgspec.structs.replace(STEP, token_s=1.0)
    slow = Standing(name="decode-1", revision="new", step=slow_step)
    fleet = fleet_of(fast, slow)
    told = registration("decode-2")
    for revision, token_s in (("old", 1e-4), ("new", 1.0), ("third", 0.50005)):
        slot = fleet.add_worker(msgspec.structs.replace(told, revision=revision))
        assert fleet.rows["token_s"][slot] == pytest.approx(token_s)
        fleet.remove_worker(slot)


def test_chains_are_those_of_the_version_while_it_has_workers() -> None:
    fleet = Fleet()
    slots = [
        fleet.add_worker(
            msgspec.structs.replace(registration(f"decode-{n}"), revision=of, compat=compat)
        )
        for n, (of, compat) in enumerate([("old", "a"), ("new", "a"), ("new", "b")])
    ]

    def compats(revision: str) -> set[str]:
        return {chain.compat for chain in fleet.chains_of(version_of(revision))}

    assert (compats("old"), compats("new"), compats("gone")) == ({"a"}, {"a", "b"}, set())
    fleet.remove_worker(slots[1])
    assert (compats("old"), compats("new")) == ({"a"}, {"b"})
    fleet.remove_worker(slots[0])
    assert (compats("old"), set(fleet.chains)) == (set(), {"b"})
