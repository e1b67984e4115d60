"""What the two ends of a TCP stream say to each other; the source's messages go in frames."""

from typing import Annotated, Final

import msgspec

from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES, Chunk, Count, Finish
from protocol.codec import Codec

NAME: Final = "tcp"
MAX_CREDIT_BYTES: Final = 64
MAX_LANES: Final = 16
Total = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Sink -> source: this many bytes of chunks may have been sent since the stream began."""

    total_bytes: Total


class TcpSetup(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a hello: the credit a stream begins with."""

    window_bytes: Count


TcpToSink = Chunk | Finish
tcp_to_sink: Final[Codec[TcpToSink]] = Codec(TcpToSink, max_bytes=MAX_STREAM_MESSAGE_BYTES)
tcp_to_source: Final[Codec[Credit]] = Codec(Credit, max_bytes=MAX_CREDIT_BYTES)
tcp_setup: Final[Codec[TcpSetup]] = Codec(TcpSetup, max_bytes=MAX_CREDIT_BYTES)
