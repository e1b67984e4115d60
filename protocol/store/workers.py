"""Who the workers and routers are, and which blocks each worker has.

Keys, which all begin with the address's prefix. Those with a time to live:
- `worker:{id}`: a packed `WorkerRecord`; `coming:{id}`: a `ComingWorker`, before that one.
- `router:{id}`: a packed `RouterRecord`.
- `members`: the set of the names of all these, so that nobody looks through what others keep in the
  same database. Whoever lists them takes out those that have died.

Those that die with their worker's epoch:
- `kv:events`: the stream of packed `BlockEvent`s of all workers, trimmed.
- `kv:blocks:{id}:{epoch}`: the set of block hashes, and `kv:sequence:{id}:{epoch}`, the number
  of the last event it holds: the snapshot for a router that starts or sees a gap.

Nothing here is on the path of a token. What Redis holds was written by peers: it is decoded as
strictly as any message.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import msgspec
from redis.asyncio.client import Pipeline

from protocol.blocks import HASH_BYTES, ChangeKind, unpack_hashes
from protocol.ids import BlockHash, Epoch, RouterId, WorkerId
from protocol.messages import Beat, Registration, Role
from protocol.store.connection import RedisConnection

STREAM_START = "0-0"
MAX_STREAM_EVENTS = 100_000
"""Kept for routers that lag; one further behind reads snapshots."""
_MEMBERS_TTL_MS = 3_600_000
"""Of the set, from the last write of any: long after the entries themselves."""
_LIST = """
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local entry = redis.call('GET', ARGV[1] .. name)
  if entry then
    found[#found + 1] = name
    found[#found + 1] = entry
  else
    redis.call('SREM', KEYS[1], name)
  end
end
return found
"""
"""Of one moment, so that who registers is not between two entries; the dead are taken out."""
_CHUNK_HASHES = 8192
T = TypeVar("T")
_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `worker:{id}` holds: what the worker is, and its last Beat."""

    registration: Registration
    beat: Beat


class ComingWorker(msgspec.Struct, frozen=True, kw_only=True):
    """What `coming:{id}` holds: a worker that loads, and registers when it has."""

    worker: WorkerId
    role: Role
    model: str
    """As of `Registration.model`; "" while it is not known yet."""


class RouterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `router:{id}` holds: a router that serves, or is about to."""

    router: RouterId
    wires: tuple[int, ...]
    """Versions of the wire that it speaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """All that have an entry, each kind by name. An entry that cannot be read is left out."""

    workers: tuple[WorkerRecord, ...] = ()
    coming: tuple[ComingWorker, ...] = ()
    routers: tuple[RouterRecord, ...] = ()


class BlockEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a worker's set of cached blocks.

    `sequence` goes up by one from event to event of an epoch. A step of more than one means
    that events are missing: read the snapshot. A worker that had to drop events, or found Redis
    empty, rewrites its snapshot and skips a number on purpose, so that everyone sees the gap.
    """

    worker: WorkerId
    epoch: Epoch
    sequence: int
    kind: ChangeKind
    packed_hashes: bytes
    """HASH_BYTES each, in order; empty when `cleared`, and of the marker of a rewrite."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's whole set as it was after the event numbered `sequence`."""

    sequence: int
    packed_hashes: bytes
    """HASH_BYTES each, in no order."""


_encoder = msgspec.msgpack.Encoder()
_records = msgspec.msgpack.Decoder(WorkerRecord)
_coming = msgspec.msgpack.Decoder(ComingWorker)
_routers = msgspec.msgpack.Decoder(RouterRecord)
_events = msgspec.msgpack.Decoder(BlockEvent)


class Store(RedisConnection):
    """What Redis knows of the cluster, with words of ours."""

    def blocks_key(self, worker: WorkerId, epoch: Epoch) -> str:
        return self._key(f"kv:blocks:{worker}:{epoch}")

    def sequence_key(self, worker: WorkerId, epoch: Epoch) -> str:
        return self._key(f"kv:sequence:{worker}:{epoch}")

    @property
    def stream_key(self) -> str:
        return self._key("kv:events")

    @property
    def _members_key(self) -> str:
        return self._key("members")

    async def register(self, record: WorkerRecord, *, ttl_s: float) -> None:
        """Writes `worker:{id}`, and keeps this epoch's snapshot alive as long. It comes no more: it
        is here."""
        worker, epoch = record.registration.worker, record.registration.epoch
        ttl_ms = round(ttl_s * 1000)
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            self._enter(pipe, f"worker:{worker}", record, ttl_ms=ttl_ms)
            self._leave(pipe, f"coming:{worker}")
            pipe.pexpire(self.blocks_key(worker, epoch), ttl_ms)
            pipe.pexpire(self.sequence_key(worker, epoch), ttl_ms)
            await pipe.execute()

    async def deregister(self, worker: WorkerId, epoch: Epoch) -> None:
        """Removes what this epoch wrote; a successor's registration stays."""
        name = f"worker:{worker}"
        key = self._key(name)

        async def body(pipe: Pipeline) -> None:
            current = _decoded(_records, cast(bytes | None, await pipe.get(key)))
            pipe.multi()  # type: ignore[no-untyped-call]
            if current is not None and current.registration.epoch == epoch:
                self._leave(pipe, name)
            pipe.delete(self.blocks_key(worker, epoch), self.sequence_key(worker, epoch))

        async with self._deadline():
            await self._redis.transaction(body, key)

    async def announce(self, coming: ComingWorker, *, ttl_s: float) -> None:
        """Writes `coming:{id}`; `register` or `withdraw` takes it away."""
        await self._write(f"coming:{coming.worker}", coming, ttl_s=ttl_s)

    async def withdraw(self, worker: WorkerId) -> None:
        await self._take_away(f"coming:{worker}")

    async def register_router(self, record: RouterRecord, *, ttl_s: float) -> None:
        """Writes `router:{id}`."""
        await self._write(f"router:{record.router}", record, ttl_s=ttl_s)

    async def deregister_router(self, router: RouterId) -> None:
        await self._take_away(f"router:{router}")

    async def list_members(self) -> Members:
        """Workers, those that come, and routers, as of one moment."""
        async with self._deadline():
            reply = self._redis.eval(_LIST, 1, self._members_key, self._key(""))
            names_and_values = await cast(Awaitable[list[bytes]], reply)
        found = sorted(zip(names_and_values[::2], names_and_values[1::2], strict=True))
        return Members(
            workers=_of_kind("worker:", found, _records),
            coming=_of_kind("coming:", found, _coming),
            routers=_of_kind("router:", found, _routers),
        )

    async def list_workers(self) -> tuple[WorkerRecord, ...]:
        """Registered workers, as of `Members`."""
        return (await self.list_members()).workers

    async def list_routers(self) -> tuple[RouterRecord, ...]:
        """Routers, as of `Members`."""
        return (await self.list_members()).routers

    async def _write(self, name: str, entry: msgspec.Struct, *, ttl_s: float) -> None:
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            self._enter(pipe, name, entry, ttl_ms=round(ttl_s * 1000))
            await pipe.execute()

    async def _take_away(self, name: str) -> None:
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            self._leave(pipe, name)
            await pipe.execute()

    def _enter(self, pipe: Pipeline, name: str, entry: msgspec.Struct, *, ttl_ms: int) -> None:
        pipe.set(self._key(name), _encoder.encode(entry), px=ttl_ms)
        pipe.sadd(self._members_key, name)
        pipe.pexpire(self._members_key, max(ttl_ms, _MEMBERS_TTL_MS))

    def _leave(self, pipe: Pipeline, name: str) -> None:
        pipe.delete(self._key(name))
        pipe.srem(self._members_key, name)

    async def publish(self, events: Sequence[BlockEvent], *, ttl_s: float) -> bool:
        """Appends one worker's events, in order, and applies them to its snapshot: all or
        nothing, so that the snapshot is exact at its sequence number. False when Redis has no
        snapshot to apply them to: rewrite it."""
        blocks = self.blocks_key(events[0].worker, events[0].epoch)
        sequence = self.sequence_key(events[0].worker, events[0].epoch)
        ttl_ms = round(ttl_s * 1000)
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            for event in events:
                _apply(pipe, blocks, event)
                _append(pipe, self.stream_key, event)
            pipe.pexpire(blocks, ttl_ms)
            pipe.set(sequence, events[-1].sequence, px=ttl_ms, xx=True)
            return bool((await pipe.execute())[-1])

    async def rewrite(
        self,
        hashes: Sequence[BlockHash],
        *,
        worker: WorkerId,
        epoch: Epoch,
        sequence: int,
        ttl_s: float,
    ) -> None:
        """Replaces a worker's snapshot, and appends an empty event numbered `sequence` that
        makes every reader see the gap before it."""
        blocks, ttl_ms = self.blocks_key(worker, epoch), round(ttl_s * 1000)
        marker = BlockEvent(
            worker=worker, epoch=epoch, sequence=sequence, kind="stored", packed_hashes=b""
        )
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(blocks)
            for start in range(0, len(hashes), _CHUNK_HASHES):
                pipe.sadd(blocks, *hashes[start : start + _CHUNK_HASHES])
            pipe.pexpire(blocks, ttl_ms)
            pipe.set(self.sequence_key(worker, epoch), sequence, px=ttl_ms)
            _append(pipe, self.stream_key, marker)
            await pipe.execute()

    async def sequence(self, worker: WorkerId, epoch: Epoch) -> int | None:
        """Number of the last event in the snapshot; None when Redis has no snapshot, for
        instance because it came back empty."""
        async with self._deadline():
            return _int(cast(bytes | None, await self._redis.get(self.sequence_key(worker, epoch))))

    async def snapshot(self, worker: WorkerId, epoch: Epoch) -> Snapshot | None:
        """A worker's whole set, or None when there is none (yet, or any more). However large it is,
        the event loop turns meanwhile."""
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            pipe.get(self.sequence_key(worker, epoch))
            # in bytes: of "SMEMBERS" the client would make a set, all at once
            pipe.execute_command(b"SMEMBERS", self.blocks_key(worker, epoch))
            value, members = await pipe.execute()
        sequence = _int(value)
        if sequence is None:
            return None
        return Snapshot(sequence=sequence, packed_hashes=await _packed_in_slices(members))

    async def last_event_id(self) -> str:
        """Where the stream ends now: read from here on after reading the snapshots."""
        async with self._deadline():
            entries = cast(_Entries, await self._redis.xrevrange(self.stream_key, count=1))
        return entries[0][0].decode() if entries else STREAM_START

    async def read_events(
        self, after: str, *, count: int = 500, block_s: float = 0.5
    ) -> tuple[str, tuple[BlockEvent, ...]]:
        """Events after that id and the id to go on from; waits up to `block_s` for one."""
        block_ms = max(1, round(block_s * 1000))
        async with self._deadline(block_s):
            reply = await self._redis.xread({self.stream_key: after}, count=count, block=block_ms)
        streams = cast(list[tuple[bytes, _Entries]], reply)
        entries = streams[0][1] if streams else []
        last = entries[-1][0].decode() if entries else after
        events = (_decoded(_events, fields.get(b"e")) for _, fields in entries)
        return last, tuple(event for event in events if event is not None)


async def _packed_in_slices(members: list[bytes]) -> bytes:
    """A turn of the event loop for each _CHUNK_HASHES. Takes the list apart."""
    packed = bytearray()
    while members:
        chunk = members[-_CHUNK_HASHES:]
        del members[-_CHUNK_HASHES:]
        packed += b"".join(member for member in chunk if len(member) == HASH_BYTES)
        del chunk
        await asyncio.sleep(0)
    return bytes(packed)


def _of_kind(
    kind: str, found: Sequence[tuple[bytes, bytes]], decoder: msgspec.msgpack.Decoder[T]
) -> tuple[T, ...]:
    read = (_decoded(decoder, value) for key, value in found if key.startswith(kind.encode()))
    return tuple(one for one in read if one is not None)


def _apply(pipe: Pipeline, blocks: str, event: BlockEvent) -> None:
    match event.kind:
        case "stored" if event.packed_hashes:
            pipe.sadd(blocks, *unpack_hashes(event.packed_hashes))
        case "evicted" if event.packed_hashes:
            pipe.srem(blocks, *unpack_hashes(event.packed_hashes))
        case "cleared":
            pipe.delete(blocks)


def _append(pipe: Pipeline, stream: str, event: BlockEvent) -> None:
    fields = {b"e": _encoder.encode(event)}
    pipe.xadd(stream, fields, maxlen=MAX_STREAM_EVENTS, approximate=True)  # type: ignore[arg-type]


def _decoded(decoder: msgspec.msgpack.Decoder[T], value: bytes | None) -> T | None:
    try:
        return None if value is None else decoder.decode(value)
    except msgspec.MsgspecError:
        return None


def _int(value: bytes | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
