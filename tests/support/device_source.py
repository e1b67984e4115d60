"""A source with its pool on a device, as a process of its own.

    python -m support.device_source KIND TRANSPORT BLOCK_BYTES NUM_BLOCKS

Lends all its blocks, written, for every line it hears, and says the ticket; ends with its input.
KIND is fake or cuda. Started by tests and by `bench.device_planes`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from subprocess import PIPE, Popen
from threading import Timer

import numpy as np
from support.gpu import ENVIRONMENT
from support.transfer_process import pack, unpack

from kvtransfer.device.collectives import Collectives
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.source.source import Source
from protocol.errors import TransferError
from protocol.ids import WorkerId, new_epoch
from protocol.layout import KvLayout, compat_hash
from protocol.messages import Ticket

SAY_WITHIN_S = 60.0
"""A process that imports torch and compiles two kernels."""


def layout_of(block_bytes: int) -> KvLayout:
    """Blocks of 16 tokens."""
    return KvLayout(
        num_layers=1, num_kv_heads=1, head_dim=block_bytes // 128, block_tokens=16,
        dtype="float32",
    )  # fmt: skip


def content_of(block_id: int, block_bytes: int) -> bytes:
    return np.random.default_rng(block_id).bytes(block_bytes)


def pool_of(kind: str, *, block_bytes: int, num_blocks: int) -> DeviceMemory:
    """A pool on a device of this kind, with the library that goes with it if there is one."""
    if kind == "fake":
        from support.fake_collectives import FakeCollectives
        from support.fake_driver import FakeDriver

        fake = FakeDriver()
        return DeviceMemory(
            fake, num_blocks=num_blocks, block_bytes=block_bytes, collectives=FakeCollectives(fake)
        )
    from kvtransfer.device.cuda import CudaDriver
    from kvtransfer.device.libnccl import Nccl

    driver = CudaDriver()
    collectives: Collectives | None = None
    with suppress(TransferError):  # then there is no nccl plane
        collectives = Nccl(driver.bind, max_ctas=2)
    return DeviceMemory(
        driver, num_blocks=num_blocks, block_bytes=block_bytes, collectives=collectives
    )


@dataclass(frozen=True, slots=True)
class Child:
    process: "Popen[str]"

    def lend(self) -> Ticket:
        """Its blocks once more."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("lend\n")
        self.process.stdin.flush()
        late = Timer(SAY_WITHIN_S, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        assert line, "the source process ended"
        return unpack(line)


@contextmanager
def device_source(
    kind: str, transport: str, *, block_bytes: int, num_blocks: int
) -> Iterator[Child]:
    """Such a process, killed afterwards if it has not ended."""
    command = [
        sys.executable, "-m", "support.device_source", kind, transport, str(block_bytes),
        str(num_blocks),
    ]  # fmt: skip
    with Popen(command, env=ENVIRONMENT, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


def main() -> None:
    kind, transport, block_bytes, num_blocks = sys.argv[1:]
    layout = layout_of(int(block_bytes))
    memory = pool_of(kind, block_bytes=layout.block_bytes, num_blocks=int(num_blocks))
    for block in range(memory.num_blocks):
        memory.write(block, content_of(block, memory.block_bytes))
    source = Source(
        memory=memory, layout=layout, worker=WorkerId("prefill-0"), epoch=new_epoch(),
        compat=compat_hash(layout, model_revision="tiny"), on_lease_end=lambda end: None,
        transports=(transport,),
    )  # fmt: skip
    for _ in sys.stdin:
        num_tokens = memory.num_blocks * layout.block_tokens
        ticket = source.open_lease(block_ids=range(memory.num_blocks), num_tokens=num_tokens)
        source.publish(ticket.lease, num_tokens)
        source.finish(ticket.lease, b"")
        print(pack(ticket), flush=True)
    source.close()
    memory.close()


if __name__ == "__main__":
    main()
