"""The answers of Anthropic's messages, as types."""

from typing import Any, Literal

import msgspec

from router.http.openapi.answer import JsonShape

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class ErrorDetails(JsonShape):
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    param: str | msgspec.UnsetType = msgspec.UNSET


class MessageErrorShape(JsonShape):
    type: str
    message: str
    details: ErrorDetails | msgspec.UnsetType = msgspec.UNSET


class MessageError(JsonShape, tag="error", tag_field="type"):
    """A refusal, or a failure, in Anthropic's shape; also an event of a stream."""

    error: MessageErrorShape


class SaidText(JsonShape, tag="text"):
    text: str


class SaidThinking(JsonShape, tag="thinking"):
    thinking: str
    signature: str


class SaidToolUse(JsonShape, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


SaidBlock = SaidText | SaidThinking | SaidToolUse


class OutputDetails(JsonShape):
    thinking_tokens: int


class MessageUsage(JsonShape):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails


class MessageShape(JsonShape, tag="message"):
    """An answer, whole."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[SaidBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(JsonShape, tag="message_start"):
    message: MessageShape


class Ping(JsonShape, tag="ping"):
    pass


class BlockStart(JsonShape, tag="content_block_start"):
    index: int
    content_block: SaidBlock


class TextDelta(JsonShape, tag="text_delta"):
    text: str


class ThinkingDelta(JsonShape, tag="thinking_delta"):
    thinking: str


class SignatureDelta(JsonShape, tag="signature_delta"):
    signature: str


class InputDelta(JsonShape, tag="input_json_delta"):
    partial_json: str


class BlockDelta(JsonShape, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(JsonShape, tag="content_block_stop"):
    index: int


class Stopped(JsonShape):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(JsonShape, tag="message_delta"):
    delta: Stopped
    usage: MessageUsage


class MessageStop(JsonShape, tag="message_stop"):
    pass


MessageEvent = (
    MessageStart
    | Ping
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | MessageError
)


class TokenCount(JsonShape):
    input_tokens: int
