from protocol.ids import WorkerId
from worker.reported.transport_uses import MAX_USES, TransportUses


def use(
    uses: TransportUses, peer: str, *, transport: str = "shm", why: str = "", num_bytes: int = 1
) -> None:
    uses.add(peer=WorkerId(peer), transport=transport, why=why, num_bytes=num_bytes)


def test_fetches_and_bytes_add_up_by_peer_and_transport_with_the_newest_reason() -> None:
    uses = TransportUses()
    use(uses, "a", why="first", num_bytes=10)
    use(uses, "a", transport="tcp")
    use(uses, "a", why="second", num_bytes=5)
    newest, other = uses.latest()
    assert (newest.name, newest.fetches, newest.bytes, newest.why) == ("shm", 2, 15, "second")
    assert (other.name, other.fetches) == ("tcp", 1)


def test_only_so_many_peers_are_remembered_and_their_reasons_are_short() -> None:
    uses = TransportUses()
    for number in range(MAX_USES + 5):
        use(uses, f"peer-{number}", why="x" * 10_000)
    latest = uses.latest()
    assert len(latest) == MAX_USES
    assert latest[0].peer == f"peer-{MAX_USES + 4}"
    assert max(len(one.why) for one in latest) == 300
