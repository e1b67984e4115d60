"""The source's end of a cuda_ipc stream: says what lies ready, and does no more."""

from typing import Final

from kvtransfer.transports.announcing import AnnouncingStream
from kvtransfer.transports.cuda_ipc.messages import NAME

CHUNK_BYTES: Final = 64 << 20
"""A launch costs the sink's thread a few dozen array operations."""


class CudaIpcSourceStream(AnnouncingStream):
    """Takes neither pool nor setup: the welcome has handed the pool on; it reads nothing itself."""

    transport = NAME
    chunk_bytes = CHUNK_BYTES
