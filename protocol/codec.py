"""Packs and unpacks messages: msgpack, typed, bounded. Nothing is ever unpickled.

A frame that is too large or does not fit its type is refused with `WireError`; the caller decides
whether to drop the peer.
"""

from typing import Generic, TypeVar

import msgspec

from protocol.errors import WireError
from protocol.messages import Emit, FirstToken, ToRouter, ToWorker

WIRE_VERSION = 8
"""What this version's workers speak. From 8 on a version may only add to the one before: fields
with defaults, and messages (`tests/contract/wire/`)."""
SPOKEN_VERSIONS = (8, 7)
"""Versions that its routers understand: they greet a worker in its own. 7 tells no text, so nothing
can be asked of it."""
MAX_MESSAGE_BYTES = 16 << 20
"""A 1,000,000-token prompt packs to 5 MB; nothing honest is larger than this."""

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


class Codec(Generic[T]):
    """Encodes and decodes one closed union."""

    def __init__(self, union: object, *, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)
        self.max_bytes = max_bytes

    def encode(self, message: T) -> bytes:
        return _encoder.encode(message)

    def decode(self, frame: bytes | memoryview) -> T:
        if len(frame) > self.max_bytes:
            raise WireError(f"message of {len(frame)} bytes exceeds {self.max_bytes}")
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"malformed message: {error}") from error


to_worker: Codec[ToWorker] = Codec(ToWorker)
to_router: Codec[ToRouter] = Codec(ToRouter)
first_token: Codec[FirstToken] = Codec(FirstToken)
one_emit: Codec[Emit] = Codec(Emit)
"""Of a `Step`, by itself."""
