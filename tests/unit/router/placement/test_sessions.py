from support.standing import Standing, fleet_of

from protocol.ids import WorkerId
from router.placement.fleet import Fleet
from router.placement.place import Preferred
from router.placement.sessions import Sessions, rendezvous

HERE = [Standing(name=f"{role}-{n}") for role in ("prefill", "decode") for n in range(4)]
P, D = WorkerId("prefill-1"), WorkerId("decode-2")


def decode_of(session: str, fleet: Fleet) -> WorkerId:
    found = rendezvous(session, fleet)
    assert found is not None
    return found.decode


def test_a_session_comes_back_to_where_it_was() -> None:
    sessions, fleet = Sessions(), fleet_of(*HERE)
    sessions.note_placed("s", prefill=P, decode=D)
    assert sessions.preferred_workers("s", fleet) == Preferred(decode=D, prefill=P)
    sessions.note_placed("s", prefill=None, decode=D)
    assert sessions.preferred_workers("s", fleet) == Preferred(decode=D, prefill=None)


def test_without_its_prefill_worker_any_will_do_without_its_decode_worker_it_is_new() -> None:
    sessions, fleet = Sessions(), fleet_of(*HERE)
    sessions.note_placed("s", prefill=P, decode=D)
    slots = [fleet.slot_of(P), fleet.slot_of(D)]
    fleet.ready[slots[0]] = 0
    assert sessions.preferred_workers("s", fleet) == Preferred(decode=D, prefill=None)
    fleet.ready[slots[1]] = 0
    assert sessions.preferred_workers("s", fleet) == rendezvous("s", fleet)


def test_routers_agree_on_a_session_that_neither_has_seen() -> None:
    one, other = fleet_of(*HERE), fleet_of(*reversed(HERE))
    for n in range(50):
        assert rendezvous(f"s{n}", one) == rendezvous(f"s{n}", other)
    assert {decode_of(f"s{n}", one) for n in range(50)} == {f"decode-{n}" for n in range(4)}


def test_a_worker_that_goes_moves_its_own_sessions_alone() -> None:
    all_, fewer = fleet_of(*HERE), fleet_of(*[one for one in HERE if one.name != D])
    for n in range(100):
        before, after = decode_of(f"s{n}", all_), decode_of(f"s{n}", fewer)
        assert after == before or before == D


def test_nobody_ready_is_nobody_preferred() -> None:
    assert rendezvous("s", fleet_of(Standing(name="prefill-0"))) is None
    assert Sessions().preferred_workers("s", Fleet()) is None


def test_the_oldest_sessions_are_forgotten() -> None:
    sessions = Sessions(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        sessions.note_placed(name, prefill=P, decode=D)
    assert len(sessions) == 2
    fleet = fleet_of(*HERE)
    assert sessions.preferred_workers("b", fleet) == rendezvous("b", fleet)
    assert sessions.preferred_workers("a", fleet) == Preferred(decode=D, prefill=P)
