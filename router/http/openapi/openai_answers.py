"""The answers of OpenAI's chats and completions, as types: no more and no less than is sent, which
tests hold the real ones to."""

from typing import Literal

from msgspec import UNSET
from msgspec import UnsetType as Absent

from router.http.openapi.answer import Answer

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorFields(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """A refusal, or a failure, in OpenAI's shape."""

    error: ErrorFields


class PromptDetails(Answer):
    cached_tokens: int


class CompletionDetails(Answer):
    reasoning_tokens: int


class UsageShape(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None
    completion_tokens_details: CompletionDetails | Absent = UNSET


class TokenLogprobShape(Answer):
    token: str
    logprob: float
    bytes: list[int]


class SampledLogprobShape(TokenLogprobShape):
    top_logprobs: list[TokenLogprobShape]


class ChatLogprobsShape(Answer):
    content: list[SampledLogprobShape]
    refusal: None


class AnsweredFunction(Answer):
    name: str
    arguments: str


class AnsweredCall(Answer):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnsweredMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | Absent = UNSET
    reasoning_content: str | Absent = UNSET
    tool_calls: list[AnsweredCall] | Absent = UNSET


class ChatChoice(Answer):
    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobsShape | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | Absent = UNSET


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: UsageShape
    prompt_token_ids: list[int] | Absent = UNSET


class FunctionDelta(Answer):
    arguments: str
    name: str | Absent = UNSET


class ToolCallDelta(Answer):
    """The first of a call has all; those after it more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | Absent = UNSET
    type: Literal["function"] | Absent = UNSET


class ChatDelta(Answer):
    role: Literal["assistant"] | Absent = UNSET
    content: str | Absent | None = UNSET
    refusal: Absent | None = UNSET
    reasoning: str | Absent = UNSET
    reasoning_content: str | Absent = UNSET
    tool_calls: list[ToolCallDelta] | Absent = UNSET


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobsShape | None
    finish_reason: FinishReason | None
    stop_reason: int | str | Absent | None = UNSET
    token_ids: list[int] | Absent = UNSET


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChunkChoice]
    usage: UsageShape | Absent | None = UNSET
    prompt_token_ids: list[int] | Absent = UNSET


class TextLogprobsShape(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobsShape | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | Absent | None = UNSET
    token_ids: list[int] | Absent = UNSET
    prompt_token_ids: list[int] | Absent = UNSET


class TextCompletion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: UsageShape | Absent | None = UNSET
