"""What the two ends of an NCCL stream say to each other, and whether they can be a pair."""

from typing import Final

import msgspec

from kvtransfer.memory.device_pool import SUM_KIND, DeviceMemory
from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES, Chunk, Count, Finish
from protocol.codec import Codec

NAME: Final = "nccl"
CHUNK_BYTES: Final = 32 << 20
"""0.7 ms of a link of 50 GB/s: several looks, and what a launch costs the host is a tenth of it."""
MAX_CHUNK_BYTES: Final = 1 << 30
"""A peer's block may be larger than a chunk, and so its staging, but not without bound."""


class NcclSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In hello and welcome: one end of the pair to be."""

    driver: str
    device: str
    library: str
    sum_kind: str
    block_bytes: Count


class Join(msgspec.Struct, frozen=True, kw_only=True, tag=4):
    """Source -> sink: meet me by this id, as rank 1."""

    unique_id: bytes


NcclToSink = Chunk | Finish | Join
nccl_to_sink: Final[Codec[NcclToSink]] = Codec(NcclToSink, max_bytes=MAX_STREAM_MESSAGE_BYTES)
nccl_setup: Final[Codec[NcclSetup]] = Codec(NcclSetup, max_bytes=1024)


def setup_of(memory: DeviceMemory) -> NcclSetup:
    assert memory.collectives is not None
    return NcclSetup(
        driver=memory.driver.name, device=memory.driver.device, sum_kind=SUM_KIND,
        library=memory.collectives.version, block_bytes=memory.block_bytes,
    )  # fmt: skip


def staging_bytes(ours: NcclSetup, theirs: NcclSetup) -> int:
    """The largest chunk either may send."""
    return max(CHUNK_BYTES, ours.block_bytes, theirs.block_bytes)


def why_not(memory: DeviceMemory, theirs: NcclSetup) -> str:
    """Why the two cannot be a pair; empty when they can."""
    assert memory.collectives is not None
    ours = setup_of(memory)
    for field in ("driver", "library", "sum_kind"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            return f"its {field} is {other}, ours {mine}"
    if staging_bytes(ours, theirs) > MAX_CHUNK_BYTES:
        return f"a chunk may have {MAX_CHUNK_BYTES} bytes at most"
    return memory.collectives.why_not(ours=ours.device, theirs=theirs.device)
