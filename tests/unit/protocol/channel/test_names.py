"""Names become numbers without anybody waiting for somebody else's."""

import asyncio
import threading

import pytest

from protocol.channel import names
from protocol.channel.names import Names
from protocol.errors import PeerLost


def test_a_name_becomes_its_number_of_the_moment_and_a_number_stays() -> None:
    moves = iter(["10.0.0.1", "10.0.0.2", "fe80::1"])

    async def test() -> None:
        known = Names(lambda host: next(moves))
        assert await known.resolve("tcp://127.0.0.1:5") == "tcp://127.0.0.1:5"
        assert await known.resolve("tcp://[::1]:5") == "tcp://[::1]:5"
        assert await known.resolve("tcp://pod:5") == "tcp://10.0.0.1:5"
        assert await known.resolve("tcp://pod:5") == "tcp://10.0.0.2:5"
        assert await known.resolve("tcp://pod:5") == "tcp://[fe80::1]:5"

    asyncio.run(test())


def test_the_machine_knows_its_own_name() -> None:
    async def test() -> None:
        assert await Names().resolve("tcp://localhost:5") in ("tcp://127.0.0.1:5", "tcp://[::1]:5")

    asyncio.run(test())


def test_slow_names_are_given_up_and_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many; and each is asked for once at a time."""
    monkeypatch.setattr(names, "RESOLVE_S", 0.2)
    answered, asked = threading.Event(), []

    def look_up(host: str) -> str:
        asked.append(host)
        if host.startswith("slow"):
            answered.wait(30)
        return "10.0.0.1"

    async def test() -> None:
        known = Names(look_up)
        async with asyncio.TaskGroup() as tasks:
            slow = [
                tasks.create_task(given_up(known, f"tcp://slow-{i % 20}:1"), name=f"slow {i}")
                for i in range(40)
            ]
            await asyncio.sleep(0)
            assert await known.resolve("tcp://quick:1") == "tcp://10.0.0.1:1"
            assert not any(one.done() for one in slow)
        assert len(asked) == 21
        answered.set()

    asyncio.run(test())


async def given_up(known: Names, address: str) -> None:
    with pytest.raises(PeerLost, match="no address within"):
        await known.resolve(address)


@pytest.mark.parametrize("error", [OSError("not known"), UnicodeError("label too long")])
def test_a_name_that_nobody_knows_says_so(error: Exception) -> None:
    def look_up(host: str) -> str:
        raise error

    async def test() -> None:
        with pytest.raises(PeerLost, match=f"worker at tcp://x:1: no address: {error}"):
            await Names(look_up).resolve("tcp://x:1")

    asyncio.run(test())
