"""The answers of Anthropic's messages, as types."""

from typing import Any, Literal

import msgspec

from router.http.openapi.answer import Answer

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class ErrorDetails(Answer):
    error_code: str | msgspec.UnsetType = msgspec.UNSET
    param: str | msgspec.UnsetType = msgspec.UNSET


class MessageErrorShape(Answer):
    type: str
    message: str
    details: ErrorDetails | msgspec.UnsetType = msgspec.UNSET


class MessageError(Answer, tag="error", tag_field="type"):
    """A refusal, or a failure, in Anthropic's shape; also an event of a stream."""

    error: MessageErrorShape


class SaidText(Answer, tag="text"):
    text: str


class SaidThinking(Answer, tag="thinking"):
    thinking: str
    signature: str


class SaidToolUse(Answer, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


SaidBlock = SaidText | SaidThinking | SaidToolUse


class OutputDetails(Answer):
    thinking_tokens: int


class MessageUsage(Answer):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails


class MessageShape(Answer, tag="message"):
    """An answer, whole."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[SaidBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(Answer, tag="message_start"):
    message: MessageShape


class Ping(Answer, tag="ping"):
    pass


class BlockStart(Answer, tag="content_block_start"):
    index: int
    content_block: SaidBlock


class TextDelta(Answer, tag="text_delta"):
    text: str


class ThinkingDelta(Answer, tag="thinking_delta"):
    thinking: str


class SignatureDelta(Answer, tag="signature_delta"):
    signature: str


class InputDelta(Answer, tag="input_json_delta"):
    partial_json: str


class BlockDelta(Answer, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(Answer, tag="content_block_stop"):
    index: int


class Stopped(Answer):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(Answer, tag="message_delta"):
    delta: Stopped
    usage: MessageUsage


class MessageStop(Answer, tag="message_stop"):
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


class TokenCount(Answer):
    input_tokens: int
