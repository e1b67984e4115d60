"""Two processes and the pools on their devices: right bytes, and an end when the other dies.

With the fake everywhere; with CUDA the two share one GPU, as `make gpu STAGE=check` runs them.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest
from support.device_owner import content_of as content_of_owner
from support.device_owner import device_owner
from support.device_source import Child, content_of, device_source, layout_of, pool_of
from support.eventually import eventually
from support.fake_driver import FakeDriver, FakeStream
from support.gpu import driver_for, why_no_gpu, why_no_nccl
from support.transfer import WITHIN_S, Outcome

from kvtransfer.device.table import table
from kvtransfer.endings import Landed, Lost
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.plan import Ranges
from kvtransfer.sink.sink import Sink
from protocol.ids import WorkerId
from protocol.layout import compat_hash
from protocol.messages import Ticket

BLOCK_BYTES = 32 << 10
NUM_BLOCKS = 256
LARGE = {
    "fake": {"block_bytes": BLOCK_BYTES, "num_blocks": NUM_BLOCKS},
    "cuda": {"block_bytes": 2 << 20, "num_blocks": 512},
}
NUM_IN_FLIGHT = 6
SILENCE_S = 5.0
"""Shorter than any patience with a peer that says nothing."""
FIRST_WITHIN_S = 60.0
"""NCCL makes its first communicator in seconds."""

pytestmark = pytest.mark.system


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and (why := why_no_gpu()):
        pytest.skip(why)
    return str(request.param)


STAGED = [pytest.param(name, marks=pytest.mark.long) for name in ("shm", "tcp")]


@pytest.fixture(params=["cuda_ipc", "nccl", *STAGED])
def transport(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "cuda" and request.param == "nccl" and (why := why_no_nccl()):
        pytest.skip(why)
    return str(request.param)


@pytest.fixture
def source(kind: str, transport: str) -> Iterator[Child]:
    with device_source(kind, transport, block_bytes=BLOCK_BYTES, num_blocks=NUM_BLOCKS) as child:
        yield child


@pytest.fixture
def memory(kind: str) -> Iterator[DeviceMemory]:
    with closing(pool_of(kind, block_bytes=BLOCK_BYTES, num_blocks=NUM_BLOCKS)) as memory:
        yield memory


@contextmanager
def fetching_into(
    memory: DeviceMemory, transport: str, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[Sink]:
    layout = layout_of(block_bytes)
    sink = Sink(
        memory=memory, layout=layout, worker=WorkerId("decode-0"), transports=(transport,),
        compat=compat_hash(layout, model_revision="tiny"), allow_fallback=False,
    )  # fmt: skip
    with closing(sink):
        yield sink


def fetch(sink: Sink, ticket: Ticket, *, num_blocks: int = NUM_BLOCKS) -> Outcome:
    """All blocks, in the opposite order."""
    outcome = Outcome()
    sink.fetch(
        ticket=ticket, indices=range(num_blocks), block_ids=range(num_blocks - 1, -1, -1),
        deadline_s=FIRST_WITHIN_S, on_end=outcome.tell,
    )  # fmt: skip
    return outcome


def landed(outcome: Outcome) -> Landed:
    end = outcome.end_within(FIRST_WITHIN_S + 1.0)
    assert isinstance(end, Landed), end
    return end


def test_a_copy_under_way_ends_right_when_the_owner_of_its_bytes_is_killed(kind: str) -> None:
    """First of all on a GPU: if this breaks the device, one worker's death is another's."""
    driver = driver_for(kind)
    size = 1 << 30 if kind == "cuda" else 1 << 20
    rows = table(Ranges(np.array([0]), np.array([size]), np.array([0, 1])))
    with device_owner(driver, num_bytes=size, seed=7) as owner, ExitStack() as held:
        source = driver.open(
            owner.exported.handle, owner.exported.fd, num_bytes=size, device=owner.device
        )
        target, stream = driver.allocate(size), driver.stream()
        if isinstance(stream, FakeStream):
            held.enter_context(stream.held())
        launched = [
            driver.copy(stream, target=target, source=source, table_5R=rows, num_pieces=1)
            for _ in range(100 if kind == "cuda" else 4)
        ]
        assert not launched[-1].happened(), "nothing was in flight"
        owner.kill()
        held.close()
        eventually(launched[-1].happened)
        content = content_of_owner(7)
        assert driver.read(target, size - len(content), len(content)) == content
        sums = [int(copied.take_sums()[0]) for copied in launched if copied.happened()]
        assert len(sums) == len(launched) and len(set(sums)) == 1
    stream.close()
    driver.close(source)
    again = driver.allocate(4096)  # the device works as before
    driver.write(again, 0, b"still here")
    assert driver.read(again, 0, 10) == b"still here"


@pytest.mark.long
def test_a_source_killed_while_its_blocks_are_copied_ends_the_fetch_alone(
    kind: str, memory: DeviceMemory
) -> None:
    """Its slots come back when the copy has ended, and another source serves."""
    sizes = {"block_bytes": BLOCK_BYTES, "num_blocks": NUM_BLOCKS}
    with fetching_into(memory, "cuda_ipc") as sink:
        with device_source(kind, "cuda_ipc", **sizes) as source, ExitStack() as held:
            landed(fetch(sink, source.lend()))
            if isinstance(memory.driver, FakeDriver):
                stream = memory.driver.streams[2]
                held.enter_context(stream.held())
            outcome = fetch(sink, source.lend())
            if isinstance(memory.driver, FakeDriver):
                eventually(lambda: stream.num_waiting)
            source.process.kill()
            assert isinstance(outcome.end_within(WITHIN_S), Landed | Lost)
        with device_source(kind, "cuda_ipc", **sizes) as another:
            landed(fetch(sink, another.lend()))
        assert memory.read(NUM_BLOCKS - 1) == content_of(0, BLOCK_BYTES)


def test_blocks_of_another_process_land_right(
    source: Child, memory: DeviceMemory, transport: str
) -> None:
    with fetching_into(memory, transport) as sink:
        for _ in range(2):
            end = landed(fetch(sink, source.lend()))
            assert (end.transport, end.num_blocks) == (transport, NUM_BLOCKS)
            for block in range(0, NUM_BLOCKS, 51):
                expected = content_of(block, BLOCK_BYTES)
                assert memory.read(NUM_BLOCKS - 1 - block) == expected
            memory.write(NUM_BLOCKS - 1, bytes(BLOCK_BYTES))


def test_a_killed_source_ends_the_fetch_and_another_one_serves(
    kind: str, source: Child, memory: DeviceMemory, transport: str
) -> None:
    with fetching_into(memory, transport) as sink:
        landed(fetch(sink, source.lend()))
        tickets = [source.lend() for _ in range(3)]
        outcomes = [fetch(sink, ticket) for ticket in tickets]
        source.process.kill()
        killed_s = time.monotonic()
        for outcome in outcomes:
            assert isinstance(outcome.end_within(WITHIN_S), Landed | Lost)
        assert time.monotonic() - killed_s < SILENCE_S, "its end was not told, but its silence"
        sizes = {"block_bytes": BLOCK_BYTES, "num_blocks": NUM_BLOCKS}
        with device_source(kind, transport, **sizes) as another:
            landed(fetch(sink, another.lend()))
        assert memory.read(NUM_BLOCKS - 1) == content_of(0, BLOCK_BYTES)


@pytest.mark.parametrize(
    "kind",
    [pytest.param("fake", marks=pytest.mark.long), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_a_source_killed_while_its_pool_is_read_costs_the_reader_nothing_else(
    kind: str, transport: str
) -> None:
    """On a GPU a gigabyte a fetch, so that copies run when the process and its memory go."""
    sizes = LARGE[kind]
    with (
        closing(pool_of(kind, **sizes)) as memory,
        fetching_into(memory, transport, block_bytes=sizes["block_bytes"]) as sink,
    ):
        with device_source(kind, transport, **sizes) as source:
            tickets = [source.lend() for _ in range(NUM_IN_FLIGHT)]
            outcomes = [fetch(sink, ticket, num_blocks=sizes["num_blocks"]) for ticket in tickets]
            landed(outcomes[0])
            source.process.kill()
        for outcome in outcomes:
            assert isinstance(outcome.end_within(WITHIN_S), Landed | Lost)
        first = bytes(range(256)) * (sizes["block_bytes"] // 256)
        memory.write(0, first)
        assert memory.read(0) == first, "the reader's own device works on"
