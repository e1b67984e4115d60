"""Frames into slots, with a clock that stands still between them."""

from kvtransfer.messages import Descriptor, FetchId, Slot
from kvtransfer.pool import BlockMemory, checksum
from kvtransfer.receiver import Receiver
from kvtransfer.session import Fetch
from protocol.ids import LeaseId

BLOCK_BYTES, BLOCK_TOKENS = 64, 4


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def descriptor(index: int) -> Descriptor:
    return Descriptor(
        index=index,
        block_id=index,
        generation=0,
        token_start=index * BLOCK_TOKENS,
        token_count=BLOCK_TOKENS,
        num_bytes=BLOCK_BYTES,
        checksum=checksum(memoryview(bytes(BLOCK_BYTES))),
    )


def test_waits_between_blocks_are_no_time_in_which_bytes_flow() -> None:
    clock = Clock()
    fetch = Fetch(
        fetch=FetchId(1), lease=LeaseId(1), slots=[Slot(0, 0), Slot(1, 1)],
        block_tokens=BLOCK_TOKENS, num_tokens=2 * BLOCK_TOKENS, block_bytes=BLOCK_BYTES,
    )  # fmt: skip
    fetch.start()
    memory = BlockMemory.create(num_blocks=2, block_bytes=BLOCK_BYTES)
    receiver = Receiver(
        memory, find=lambda _: fetch, follow=lambda *_: None, tamper=None, clock=clock
    )
    for index, flow_s in enumerate((0.5, 0.25)):
        clock.now += 30.0
        slot = receiver.begin_frame(fetch.fetch, 1, index, descriptor(index))
        assert slot is not None
        slot.release()
        clock.now += flow_s
        receiver.end_frame(fetch.fetch, descriptor(index))
    assert receiver.take_flow_s(fetch.fetch) == 0.75
    assert receiver.take_flow_s(fetch.fetch) == 0.0
    memory.close()
