"""The events of a streamed message as bytes."""

from typing import Any, assert_never

import msgspec

from router.anthropic.blocks import BlockBegun, BlockChange, BlockEnded, BlockGrown, Kind

_encode = msgspec.json.encode
_DELTAS: dict[Kind, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""Of a block's kind: the delta's, and the field that has its text."""


def event_frame(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


PING = event_frame("ping")


def block_frame(change: BlockChange) -> bytes:
    index = change.block.index
    match change:
        case BlockBegun(block):
            return event_frame("content_block_start", index=index, content_block=block.begun)
        case BlockGrown(block, text):
            kind, field = _DELTAS[block.kind]
            delta = {"type": kind, field: text}
            return event_frame("content_block_delta", index=index, delta=delta)
        case BlockEnded(block):
            signed = b""
            if block.kind == "thinking":
                delta = {"type": "signature_delta", "signature": block.signature}
                signed = event_frame("content_block_delta", index=index, delta=delta)
            return signed + event_frame("content_block_stop", index=index)
        case _:
            assert_never(change)
