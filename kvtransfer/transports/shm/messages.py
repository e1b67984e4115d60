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


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Sink -> source: what was staged at this offset is read no more."""

    offset: Id


class ShmSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a hello: the sink's pool, whose descriptor rides along with that of a copy job."""

    num_blocks: Count
    block_bytes: Count


class StagingSetup(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """In a welcome of a device pool: its descriptor is of so many bytes of staging."""

    num_bytes: Id


ShmToSource = Help | Taken
shm_to_source: Final[Codec[ShmToSource]] = Codec(ShmToSource, max_bytes=MAX_HELP_BYTES)
staging_setup: Final[Codec[StagingSetup]] = Codec(StagingSetup, max_bytes=MAX_HELP_BYTES)
shm_setup: Final[Codec[ShmSetup]] = Codec(ShmSetup, max_bytes=64)
