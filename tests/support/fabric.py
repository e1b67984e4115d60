"""The KV of fake workers: the prompt itself, lent under leases of what was computed of it."""

import asyncio
from dataclasses import dataclass, field
from itertools import count

from protocol.ids import LeaseId, WorkerId


class SourceLost(Exception):
    pass


@dataclass(slots=True)
class _Lease:
    source: WorkerId
    sequence: tuple[int, ...]
    note: asyncio.Future[int]


@dataclass(slots=True)
class Fabric:
    """Who holds which KV. A lease ends with a note (the first token) or as lost."""

    leases: dict[LeaseId, _Lease] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def open(self, source: WorkerId, sequence: tuple[int, ...]) -> LeaseId:
        lease = LeaseId(next(self._numbers))
        note: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        note.add_done_callback(lambda done: done.exception())
        self.leases[lease] = _Lease(source, sequence, note)
        return lease

    def finish(self, lease: LeaseId, token: int) -> None:
        self.leases[lease].note.set_result(token)

    def lose(self, lease: LeaseId) -> None:
        if not self.leases[lease].note.done():
            self.leases[lease].note.set_exception(SourceLost())

    async def fetch(self, lease: LeaseId) -> tuple[tuple[int, ...], int]:
        return self.leases[lease].sequence, await asyncio.shield(self.leases[lease].note)
