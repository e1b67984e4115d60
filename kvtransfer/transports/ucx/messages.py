"""What the two ends of a UCX stream say to each other by their socket."""

from typing import Final

import msgspec

from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES, Chunk, Count, Finish
from protocol.codec import Codec

NAME: Final = "ucx"


class Sending(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    """Source -> sink, of a chunk that is posted: its bytes come, or empty messages instead."""

    number: Count
    whole: bool


class Posted(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Sink -> source: the slots of the n-th chunk are open to receive."""

    number: Count
    runs: bytes
    """Packed u4[]: how many ranges, adjacent on both sides, each message is of."""


class Unwanted(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Sink -> source: nothing of the n-th chunk is to be sent."""

    number: Count


UcxToSink = Chunk | Finish | Sending
UcxToSource = Posted | Unwanted
ucx_to_sink: Final[Codec[UcxToSink]] = Codec(UcxToSink, max_bytes=MAX_STREAM_MESSAGE_BYTES)
ucx_to_source: Final[Codec[UcxToSource]] = Codec(UcxToSource, max_bytes=MAX_STREAM_MESSAGE_BYTES)
