"""The answers of OpenAI's chats and completions, as types: no more and no less than is sent, which
tests hold the real ones to."""

from typing import Literal

from msgspec import UNSET, UnsetType

from router.http.openapi.answer import JsonShape

FinishReason = Literal["stop", "length", "tool_calls"]


class ScoreShape(JsonShape):
    logprob: float
    rank: int
    decoded_token: str


TokenScores = dict[str, ScoreShape]
"""Of one place of a prompt, by token id."""


class ErrorFields(JsonShape):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(JsonShape):
    """A refusal, or a failure, in OpenAI's shape."""

    error: ErrorFields


class PromptDetails(JsonShape):
    cached_tokens: int


class CompletionDetails(JsonShape):
    reasoning_tokens: int


class UsageShape(JsonShape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class TokenLogprobShape(JsonShape):
    token: str
    logprob: float
    bytes: list[int]


class SampledLogprobShape(TokenLogprobShape):
    top_logprobs: list[TokenLogprobShape]


class ChatLogprobsShape(JsonShape):
    content: list[SampledLogprobShape]
    refusal: None


class AnsweredFunction(JsonShape):
    name: str
    arguments: str


class AnsweredCall(JsonShape):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnsweredMessage(JsonShape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnsweredCall] | UnsetType = UNSET


class ChatChoice(JsonShape):
    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobsShape | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(JsonShape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: UsageShape
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[TokenScores | None] | UnsetType = UNSET


class FunctionDelta(JsonShape):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(JsonShape):
    """The first of a call has all; those after it more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(JsonShape):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(JsonShape):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobsShape | None
    finish_reason: FinishReason | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(JsonShape):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChunkChoice]
    usage: UsageShape | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TextLogprobsShape(JsonShape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(JsonShape):
    index: int
    text: str
    logprobs: TextLogprobsShape | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[TokenScores | None] | UnsetType = UNSET


class TextCompletion(JsonShape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: UsageShape | UnsetType | None = UNSET


class Embedding(JsonShape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(JsonShape):
    prompt_tokens: int
    total_tokens: int


class Embeddings(JsonShape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
