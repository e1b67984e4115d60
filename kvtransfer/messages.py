"""What the two ends of a fetch say to each other: closed unions, one per direction.

Frozen msgspec structs behind one version byte, packed by `protocol.codec` with a size limit.
Times are remaining or elapsed seconds, never clock readings. Bulk bytes never travel here.
"""

from typing import Annotated, Final, Literal, NewType, TypeVar

import msgspec

from kvtransfer.sum_kinds import XXH3
from protocol.codec import Codec
from protocol.errors import WireError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.layout import Layout

CONTROL_VERSION: Final = 4
MAX_CONTROL_BYTES: Final = 4 << 20
"""The slots of a 4,000,000-token prompt pack to 2 MB; nothing honest is larger."""
MAX_RENEWED: Final = 1_024
"""Leases in one message: their ends, with reasons, pack to 2 MB at most."""
HASH_BYTES: Final = 16
NO_LEASE: Final = LeaseId(0)
"""In place of a lease where there is none."""
MAX_BORROWED_TOKENS: Final = 1 << 19
"""Of one prefix: they pack to half of what a control message may have."""
MAX_NOTE_BYTES: Final = 64 << 10
MAX_SETUP_BYTES: Final = 64 << 10
MAX_STREAM_MESSAGE_BYTES: Final = 1 << 20
"""Of one message on a stream: a chunk of 4,096 pieces packs to 230 KB."""

MessageT = TypeVar("MessageT")
FetchId = NewType("FetchId", int)
SessionId = NewType("SessionId", int)
"""Random 63-bit number by which a source knows that two sockets belong to one sink."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]
Setup = Annotated[bytes, msgspec.Meta(max_length=MAX_SETUP_BYTES)]
"""What a transport tells its other end, opaque to all others."""
SumName = Annotated[str, msgspec.Meta(max_length=32)]
SumKinds = Annotated[tuple[SumName, ...], msgspec.Meta(max_length=8)]
Reason = Annotated[str, msgspec.Meta(max_length=2_000)]
RefusalCode = Literal["version", "epoch", "protocol"]
FailureCode = Literal["lease_expired", "mismatch", "failed", "refused", "closed"]


class Chunk(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Pieces of one fetch that travel together; `kvtransfer.chunk` packs and checks them."""

    fetch: Id
    attempt: Count
    pieces: bytes
    """Packed `kvtransfer.chunk.PIECE[]`."""
    blocks: bytes
    """Packed u4[]: the source's blocks that each piece is read from."""


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Every block is written; `note` is the source's last word to the fetcher."""

    fetch: Id
    attempt: Count
    note: Annotated[bytes, msgspec.Meta(max_length=MAX_NOTE_BYTES)]
    since_s: Seconds
    """Seconds since the source was told so."""


# -- sink -> source -----------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """First message on a link; answered by `Opened` or `Refused`."""

    session: Id
    worker: WorkerId
    epoch: Epoch
    """Of the source, as its ticket says; another incarnation refuses."""


class FetchBlocks(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Give me these blocks as they are written. A higher attempt replaces a lower one."""

    fetch: Id
    attempt: Count
    lease: LeaseId
    compat: Annotated[str, msgspec.Meta(max_length=256)]
    layout: Layout
    """Of the fetcher's pool."""
    indices: bytes
    """Packed u4[], ascending: slots wanted, counted from token 0 in the fetcher's blocks, those of
    all KV groups."""
    slots: bytes
    """Packed u4[]: the block of the fetcher's pool that each goes to."""
    heads: tuple[Count, Count] | None = None
    """The first and the end of those to send, of the model's; None: all that our pool holds."""


class Renew(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    """Keep all these leases for `remaining_s` from now; answered by `Renewed`."""

    leases: Annotated[tuple[LeaseId, ...], msgspec.Meta(max_length=MAX_RENEWED)]
    remaining_s: Seconds


class Release(msgspec.Struct, frozen=True, kw_only=True, tag=4):
    """Everything landed: the source may free the blocks."""

    lease: LeaseId


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=5):
    """The blocks are not wanted any more, whether they were asked for or not."""

    lease: LeaseId
    reason: Reason


class Borrow(msgspec.Struct, frozen=True, kw_only=True, tag=6):
    """Lend me what your prefix cache has of these tokens' KV, in whole blocks from the first on.
    Answered by `Lent`, once; what is lent is then fetched as under any lease."""

    fetch: Id
    compat: Annotated[str, msgspec.Meta(max_length=256)]
    seed: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    """Where the hash chain of the tokens begins: of another model, adapter or tenant it is
    another."""
    token_ids: Annotated[bytes, msgspec.Meta(max_length=4 * MAX_BORROWED_TOKENS)]
    """Packed u4[]. The tokens and not their hashes: whoever owns them compares them, so that a
    collision costs a miss and not a wrong answer."""


ToSource = Open | FetchBlocks | Renew | Release | Cancel | Borrow

# -- source -> sink -----------------------------------------------------------------------


class PlaneAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where a source's streams of one transport connect: `host:port` or an abstract socket."""

    transport: Annotated[str, msgspec.Meta(max_length=32)]
    address: Annotated[str, msgspec.Meta(max_length=256)]


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    epoch: Epoch
    planes: Annotated[tuple[PlaneAddress, ...], msgspec.Meta(max_length=16)]


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """This link can never work. The source forgets it."""

    code: RefusalCode
    reason: Reason


class FetchFailed(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    fetch: Id
    attempt: Count
    code: FailureCode
    reason: Reason


class EndedLease(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A lease that has ended, and how."""

    lease: LeaseId
    code: FailureCode
    reason: Reason


class Renewed(msgspec.Struct, frozen=True, kw_only=True, tag=4):
    gone: tuple[EndedLease, ...]
    """Of the leases named, those that were not renewed."""


class Lent(msgspec.Struct, frozen=True, kw_only=True, tag=5):
    """The sink holds a lease on the blocks of the first `num_tokens` of the tokens it named, which
    are written; or on nothing."""

    fetch: Id
    lease: LeaseId
    """NO_LEASE: on nothing."""
    num_tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_BORROWED_TOKENS)]
    last: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)] = b""
    """Hash of the last block lent, by the chain of the tokens as the source heard them: of other
    tokens it is another, so nothing is fetched that was not meant."""
    reason: Reason = ""
    """Why there is no lease."""


ToSink = Opened | Refused | FetchFailed | Renewed | Lent

# -- first messages on a data stream ---------------------------------------------------------


class StreamHello(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    version: int
    session: Id
    epoch: Epoch
    lane: Annotated[int, msgspec.Meta(ge=0, le=63)] = 0
    """Sockets beyond the first of one stream count from 1."""
    sum_kinds: SumKinds = (XXH3,)
    """Checksums that the sink can take of its pool, the best first (`kvtransfer.sum_kinds`)."""
    block_bytes: Count = 0
    """Of the sink's pool: no piece of a chunk is larger."""
    chunk_bytes: Count = 0
    """Most bytes that the sink takes in one chunk of several pieces; 0: any."""
    setup: Setup = b""


class StreamWelcome(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """The stream belongs to the session; over a unix socket the pool's descriptor rides along."""

    version: int
    epoch: Epoch
    num_blocks: Count
    block_bytes: Count
    sum_kind: SumName = XXH3
    """That of all chunks of this stream."""
    refusal: Reason = ""
    """Why there is no stream, and the socket is closed; empty: there is one."""
    setup: Setup = b""


MAX_HELLO_BYTES: Final = MAX_SETUP_BYTES + 4096
stream_hello: Codec[StreamHello] = Codec(StreamHello, max_bytes=MAX_HELLO_BYTES)
stream_welcome: Codec[StreamWelcome] = Codec(StreamWelcome, max_bytes=MAX_HELLO_BYTES)

_VERSION = bytes([CONTROL_VERSION])


class ControlCodec(Codec[MessageT]):
    """Of one direction of the control link: each frame begins with the version."""

    def __init__(self, union: object) -> None:
        super().__init__(union, max_bytes=MAX_CONTROL_BYTES)

    def encode(self, message: MessageT) -> bytes:
        return _VERSION + super().encode(message)

    def decode(self, frame: bytes | memoryview) -> MessageT:
        """Raises WireError: unknown version, too large, or not a message."""
        if frame[:1] != _VERSION:
            theirs = frame[:1].hex() or "none"
            raise WireError(f"control version {theirs}, ours is {_VERSION.hex()}")
        return super().decode(frame[1:])


to_source: ControlCodec[ToSource] = ControlCodec(ToSource)
to_sink: ControlCodec[ToSink] = ControlCodec(ToSink)
