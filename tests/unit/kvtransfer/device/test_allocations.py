"""Memory of a device that another process maps: whose it is, how it goes over, what keeps it."""

import os
from dataclasses import dataclass, field

import pytest
from support.fake_libcuda import FIRST_ADDRESS, GRAIN_BYTES, FakeLibcuda, in_process

from kvtransfer.device.allocations import Allocations
from kvtransfer.device.driver import CannotMap, Exported
from kvtransfer.native.copy import Span
from protocol.errors import TransferError

DEVICE = "01010101-0101-0101-0101-010101010101"
ANOTHER = "02020202-0202-0202-0202-020202020202"
NUM_BYTES = 3 << 20


@dataclass
class Process:
    """One that sees one GPU."""

    device: str = DEVICE
    cuda: FakeLibcuda = field(default_factory=FakeLibcuda)

    def __post_init__(self) -> None:
        with in_process(self.cuda):
            self.allocations = Allocations(0, device=self.device)

    def allocate(self, num_bytes: int = NUM_BYTES) -> Span:
        with in_process(self.cuda):
            return self.allocations.allocate(num_bytes)

    def export(self, span: Span) -> Exported:
        with in_process(self.cuda):
            return self.allocations.export(span)

    def free(self, span: Span) -> None:
        with in_process(self.cuda):
            self.allocations.free(span)

    def open(self, exported: Exported, num_bytes: int = NUM_BYTES, device: str = DEVICE) -> Span:
        """As from the welcome: the descriptor is closed afterwards."""
        try:
            with in_process(self.cuda):
                return self.allocations.open(
                    exported.handle, exported.fd, num_bytes=num_bytes, device=device
                )
        finally:
            os.close(exported.fd)

    def close(self, span: Span) -> None:
        with in_process(self.cuda):
            self.allocations.close(span)


@pytest.fixture
def owner() -> Process:
    return Process()


@pytest.fixture
def peer() -> Process:
    return Process()


def test_memory_is_made_in_whole_grains_and_given_back_in_order(owner: Process) -> None:
    span = owner.allocate()
    assert owner.cuda.reserved == {span.address: 2 * GRAIN_BYTES}
    owner.free(span)
    assert owner.cuda.calls == ["MemCreate", "MemMap", "MemUnmap", "MemRelease"]
    assert not owner.cuda.memory and not owner.cuda.reserved


def test_two_containers_with_one_process_id_and_one_address_are_told_apart(
    owner: Process, peer: Process
) -> None:
    """Both may be process 1, and CUDA gives equal addresses: here both are this very process."""
    theirs, ours = owner.allocate(), peer.allocate()
    assert theirs.address == ours.address == FIRST_ADDRESS
    opened = peer.open(owner.export(theirs))
    owner.cuda.mapped[theirs.address][:5] = b"hello"
    assert opened.address != ours.address
    assert peer.cuda.mapped[opened.address][:5] == b"hello"
    assert not any(peer.cuda.mapped[ours.address][:5])


def test_a_mapping_outlives_its_owner(owner: Process, peer: Process) -> None:
    span = owner.allocate()
    opened = peer.open(owner.export(span))
    owner.cuda.mapped[span.address][-4:] = b"last"
    owner.free(span)
    assert not owner.cuda.memory
    assert peer.cuda.mapped[opened.address][:][-4:] == b"last"


def test_the_sink_gives_back_all_it_took(owner: Process, peer: Process) -> None:
    num_open, exported = len(os.listdir("/proc/self/fd")), owner.export(owner.allocate())
    opened = peer.open(exported)
    assert peer.cuda.calls == ["MemImportFromShareableHandle", "MemMap", "MemRelease"]
    peer.close(opened)
    assert not (peer.cuda.memory or peer.cuda.mapped or peer.cuda.reserved)
    assert len(os.listdir("/proc/self/fd")) <= num_open + 2  # of the owner: memory and mapping


def test_the_owner_itself_is_given_what_it_has_and_keeps_it(owner: Process) -> None:
    span = owner.allocate()
    assert owner.open(owner.export(span)) == span
    owner.close(span)
    assert list(owner.cuda.mapped) == [span.address]


def test_own_memory_that_is_freed_is_not_opened(owner: Process) -> None:
    span = owner.allocate()
    exported = owner.export(span)
    owner.free(span)
    with pytest.raises(CannotMap, match="not allocated any more"):
        owner.open(exported)


def test_memory_smaller_than_was_told_is_refused_and_nothing_stays(
    owner: Process, peer: Process
) -> None:
    exported = owner.export(owner.allocate(GRAIN_BYTES))
    larger = owner.export(owner.allocate(4 * GRAIN_BYTES))
    with pytest.raises(CannotMap):  # the handle of the larger, the descriptor of the smaller
        peer.open(Exported(handle=larger.handle, fd=exported.fd), 4 * GRAIN_BYTES)
    with pytest.raises(CannotMap, match="fewer than"):
        peer.open(larger, 4 * GRAIN_BYTES + 1)
    assert not (peer.cuda.memory or peer.cuda.mapped or peer.cuda.reserved)


def test_a_gpu_without_peer_access_is_named(owner: Process, peer: Process) -> None:
    peer.cuda.has_peer_access = False
    peer.cuda.uuids, peer.device = [bytes([2]) * 16, bytes([1]) * 16], ANOTHER
    peer.__post_init__()
    with pytest.raises(CannotMap, match=f"GPU {ANOTHER} has no peer access to GPU {DEVICE}"):
        peer.open(owner.export(owner.allocate()))
    assert not (peer.cuda.memory or peer.cuda.mapped or peer.cuda.reserved)


def test_a_gpu_that_this_process_does_not_see_is_named(owner: Process, peer: Process) -> None:
    peer.cuda.has_peer_access, peer.cuda.uuids = False, [bytes([2]) * 16]
    with pytest.raises(CannotMap, match=f"GPU {DEVICE} is not among those that this process sees"):
        peer.open(owner.export(owner.allocate()))


def test_a_gpu_that_is_not_seen_may_yet_be_mapped(owner: Process, peer: Process) -> None:
    """CUDA maps what it can, whichever devices a process was shown."""
    peer.cuda.uuids = [bytes([2]) * 16]
    peer.close(peer.open(owner.export(owner.allocate())))


def test_a_gpu_that_gives_no_descriptors_serves_its_own_process(owner: Process) -> None:
    owner.cuda.gives_descriptors = False
    span = owner.allocate()
    with pytest.raises(TransferError, match="gives no descriptors"):
        owner.export(span)


def test_a_gpu_without_room_says_so_and_nothing_stays(owner: Process) -> None:
    owner.cuda.room_bytes = GRAIN_BYTES
    with pytest.raises(TransferError, match="cuMemCreate"):
        owner.allocate()
    owner.cuda.room_bytes, owner.cuda.has_peer_access = 1 << 40, False
    with pytest.raises(TransferError, match="cuMemSetAccess"):
        owner.allocate()
    assert not (owner.cuda.memory or owner.cuda.mapped or owner.cuda.reserved)
