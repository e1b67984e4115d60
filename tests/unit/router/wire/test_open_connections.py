"""Who gets in when all are being answered."""

from router.wire.open_connections import OpenConnections


class Client:
    """That nobody asks to go."""

    def note_drain(self) -> None:
        raise AssertionError("nobody drains")

    def make_room(self) -> None:
        raise AssertionError("it was being answered")


def _answered(others: OpenConnections) -> Client:
    client = Client()
    assert others.admit(client)
    others.note_request(client)
    return client


def test_a_few_more_are_let_in_for_probes_and_no_others() -> None:
    others = OpenConnections(max_connections=2)
    served, _ = _answered(others), _answered(others)
    probes = [_answered(others) for _ in range(8)]
    assert not others.admit(Client())
    assert others.may_ask(served, b"/v1/models")
    for probe in probes:
        assert others.may_ask(probe, b"/health")
        assert not others.may_ask(probe, b"/v1/models")


def test_one_let_in_for_probes_takes_a_place_that_becomes_free() -> None:
    others = OpenConnections(max_connections=1)
    served, probe, other = (_answered(others) for _ in range(3))
    others.forget(served)
    assert others.may_ask(probe, b"/v1/models")
    assert not others.may_ask(other, b"/v1/models")
    assert others.may_ask(probe, b"/v1/models")
