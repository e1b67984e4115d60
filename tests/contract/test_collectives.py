"""What every library of two-rank communicators must do, the shipped fake included."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.eventually import eventually
from support.gpu import DRIVERS, collectives_for, driver_for

from kvtransfer.device.collectives import UNIQUE_ID_BYTES, Collectives, Communicator
from kvtransfer.device.driver import Driver, Mark, Stream
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

NUM_BYTES = 3 << 20


def settle(ranks: list[Communicator]) -> None:
    """Each must be looked at for either to get on."""

    def settled() -> bool:
        states = [rank.settled() for rank in ranks]
        return all(states)

    eventually(settled)


def happen(events: list[Mark]) -> None:
    def happened() -> bool:
        states = [event.happened() for event in events]
        return all(states)

    eventually(happened)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return driver_for(request.param)


@pytest.fixture
def collectives(driver: Driver) -> Collectives:
    return collectives_for(driver)


@pytest.fixture
def ranks(collectives: Collectives) -> Iterator[list[Communicator]]:
    unique_id = collectives.unique_id()
    ranks = [collectives.join(unique_id, rank=rank) for rank in range(2)]
    settle(ranks)
    yield ranks
    for rank in ranks:
        rank.abort()


def filled(driver: Driver, seed: int) -> tuple[Span, bytes]:
    span, content = driver.allocate(NUM_BYTES), np.random.default_rng(seed).bytes(NUM_BYTES)
    driver.write(span, 0, content)
    mark = driver.mark()
    eventually(mark.happened)
    return span, content


def launched(ranks: list[Communicator], streams: list[Stream]) -> list[Mark]:
    """The events after what each rank began."""
    settle(ranks)
    return [stream.record() for stream in streams]


def test_ids_are_used_once(collectives: Collectives) -> None:
    one, other = collectives.unique_id(), collectives.unique_id()
    assert len(one) == len(other) == UNIQUE_ID_BYTES and one != other


def test_what_one_rank_sends_the_other_receives(driver: Driver, ranks: list[Communicator]) -> None:
    (source, content), target = filled(driver, 1), driver.allocate(NUM_BYTES)
    streams = [driver.stream(), driver.stream()]
    ranks[0].send([source], streams[0])
    ranks[1].receive([target], streams[1])
    events = launched(ranks, streams)
    happen(events)
    assert driver.read(target, 0, NUM_BYTES) == content


def test_several_arrive_in_the_order_they_were_sent(
    driver: Driver, ranks: list[Communicator]
) -> None:
    sources = [filled(driver, seed) for seed in (2, 3)]
    targets = [driver.allocate(NUM_BYTES) for _ in sources]
    streams = [driver.stream(), driver.stream()]
    for (source, _), target in zip(sources, targets, strict=True):
        ranks[0].send([source], streams[0])
        ranks[1].receive([target], streams[1])
        events = launched(ranks, streams)
    happen(events)
    for (_, content), target in zip(sources, targets, strict=True):
        assert driver.read(target, 0, NUM_BYTES) == content


def test_those_sent_in_one_launch_are_received_in_two(
    driver: Driver, ranks: list[Communicator]
) -> None:
    sources = [filled(driver, seed) for seed in (4, 5)]
    targets = [driver.allocate(NUM_BYTES) for _ in sources]
    streams = [driver.stream(), driver.stream()]
    ranks[0].send([source for source, _ in sources], streams[0])
    for target in targets:
        ranks[1].receive([target], streams[1])
        events = launched(ranks, streams)
    happen(events)
    for (_, content), target in zip(sources, targets, strict=True):
        assert driver.read(target, 0, NUM_BYTES) == content


def test_a_rank_alone_does_not_settle_and_can_be_aborted(collectives: Collectives) -> None:
    alone = collectives.join(collectives.unique_id(), rank=0)
    assert not alone.settled()
    alone.abort()


def test_an_abort_gets_work_off_a_stream_whose_peer_never_answers(
    driver: Driver, ranks: list[Communicator]
) -> None:
    stream, span = driver.stream(), driver.allocate(NUM_BYTES)
    ranks[1].receive([span], stream)
    if ranks[1].settled():  # NCCL may launch it only when the other rank has come
        assert not stream.record().happened()
    ranks[1].abort()
    eventually(stream.record().happened)


def test_two_that_were_aborted_meet_again(collectives: Collectives, driver: Driver) -> None:
    for _ in range(2):
        unique_id = collectives.unique_id()
        pair = [collectives.join(unique_id, rank=rank) for rank in range(2)]
        settle(pair)
        for rank in pair:
            rank.abort()


def test_an_id_of_nothing_is_refused(collectives: Collectives) -> None:
    with pytest.raises(TransferError):
        collectives.join(b"short", rank=0)
