"""A device pool's staging over shared memory: the source's carrier, and the sink's view of it."""

import mmap
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from kvtransfer.chunk import Landing
from kvtransfer.device.table import packed
from kvtransfer.memory.sealed import address_of, open_sealed
from kvtransfer.messages import Chunk
from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges
from kvtransfer.transports.announcing import AnnouncingStream, Staged
from kvtransfer.transports.framing import MessageInbox
from kvtransfer.transports.shm.messages import NAME, StagingSetup, Taken, shm_to_source
from kvtransfer.transports.shm.source import CHUNK_BYTES
from protocol.errors import WireError


class ShmCarrier(AnnouncingStream):
    """Says which chunks lie in staging, and hears which are read no more."""

    transport = NAME
    chunk_bytes = CHUNK_BYTES

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._inbox = MessageInbox(sock, shm_to_source)
        self._held: dict[int, Chunk] = {}

    def receive(self) -> None:
        for message in self._inbox.receive():
            if not isinstance(message, Taken) or self._held.pop(message.offset, None) is None:
                raise WireError("the sink took what was not staged")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        offset = int(ranges.offsets_R[0])
        self._held[offset] = chunk
        self._outbox.put_message(Staged(chunk=chunk, offset=offset))

    def held_chunks(self) -> Collection[Chunk]:
        return self._held.values()


@dataclass(slots=True, eq=False)
class PeerStaging:
    """The source's staging as a sink of its host maps it, for reading."""

    span: Span
    mapping: mmap.mmap
    fd: int

    @classmethod
    def open(cls, fd: int, setup: StagingSetup) -> "PeerStaging":
        """Takes `fd` even when it raises LayoutMismatch."""
        mapping = open_sealed(fd, what="staging", num_bytes=setup.num_bytes)
        return cls(Span(address_of(mapping), setup.num_bytes), mapping, fd)

    def where(self, landing: Landing, offset: int) -> Ranges:
        """The ranges of a chunk that lies whole at `offset`."""
        there = packed(landing.target)
        return Ranges(there.offsets_R + offset, there.sizes_R, there.starts_P)

    def close(self) -> None:
        self.mapping.close()
        os.close(self.fd)
