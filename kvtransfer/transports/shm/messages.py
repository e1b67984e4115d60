"""What the two ends of a shared-memory stream say to each other beside announcements."""

from typing import Final

import msgspec

from kvtransfer.messages import Count, Id
from protocol.codec import Codec

NAME: Final = "shm"
HELPS: Final = b"helps"
"""In a welcome's setup: the source copies along when it is told to and has time."""
MAX_HELP_BYTES: Final = 64


class Help(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Sink -> source: copy pieces of this job too, if you have time. Answered by `Left`."""

    number: Id


class ShmSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a hello: the sink's pool, whose descriptor rides along with that of a copy job."""

    num_blocks: Count
    block_bytes: Count


shm_to_source: Final[Codec[Help]] = Codec(Help, max_bytes=MAX_HELP_BYTES)
shm_setup: Final[Codec[ShmSetup]] = Codec(ShmSetup, max_bytes=64)
