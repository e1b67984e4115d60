"""The answers of the Responses API, as types."""

from typing import Any, Literal

from router.http.openapi.answer import JsonShape
from router.http.openapi.openai_answers import ErrorFields, SampledLogprobShape

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(JsonShape, tag="output_text"):
    text: str
    annotations: list[None]
    logprobs: list[SampledLogprobShape]


class ReasoningText(JsonShape, tag="reasoning_text"):
    text: str


class SummaryText(JsonShape, tag="summary_text"):
    text: str


class MessageItem(JsonShape, tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(JsonShape, tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: None


class CallItem(JsonShape, tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


Item = MessageItem | ReasoningItem | CallItem


class CachedDetails(JsonShape):
    cached_tokens: int
    cache_write_tokens: int


class ReasoningDetails(JsonShape):
    reasoning_tokens: int


class ResponseUsage(JsonShape):
    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class Failure(JsonShape):
    code: str
    message: str


class Incomplete(JsonShape):
    reason: Literal["max_output_tokens"]


class ResponseShape(JsonShape):
    """A response, whole or as far as it is."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: Failure | None
    incomplete_details: Incomplete | None
    output: list[Item]
    usage: ResponseUsage | None
    background: Literal[False]
    frequency_penalty: float
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class _Event(JsonShape):
    sequence_number: int


class _OfResponse(_Event):
    response: ResponseShape


class CreatedEvent(_OfResponse, tag="response.created"):
    pass


class InProgressEvent(_OfResponse, tag="response.in_progress"):
    pass


class CompletedEvent(_OfResponse, tag="response.completed"):
    pass


class IncompleteResponse(_OfResponse, tag="response.incomplete"):
    pass


class FailedResponse(_OfResponse, tag="response.failed"):
    pass


class StreamError(_Event, tag="error"):
    code: str | None
    message: str
    param: str | None
    error: ErrorFields


class _OfItem(_Event):
    output_index: int
    item: Item


class ItemAdded(_OfItem, tag="response.output_item.added"):
    pass


class ItemDone(_OfItem, tag="response.output_item.done"):
    pass


class _InItem(_Event):
    item_id: str
    output_index: int


class _InContent(_InItem):
    content_index: int


class _InSummary(_InItem):
    summary_index: int


class PartAdded(_InContent, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(_InContent, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class SummaryPartAdded(_InSummary, tag="response.reasoning_summary_part.added"):
    part: SummaryText


class SummaryPartDone(_InSummary, tag="response.reasoning_summary_part.done"):
    part: SummaryText


class OutputTextDelta(_InContent, tag="response.output_text.delta"):
    delta: str
    logprobs: list[SampledLogprobShape]


class OutputTextDone(_InContent, tag="response.output_text.done"):
    text: str
    logprobs: list[SampledLogprobShape]


class ReasoningDelta(_InContent, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(_InContent, tag="response.reasoning_text.done"):
    text: str


class SummaryDelta(_InSummary, tag="response.reasoning_summary_text.delta"):
    delta: str


class SummaryDone(_InSummary, tag="response.reasoning_summary_text.done"):
    text: str


class ArgumentsDelta(_InItem, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_InItem, tag="response.function_call_arguments.done"):
    arguments: str
    name: str


ResponseEvent = (
    CreatedEvent
    | InProgressEvent
    | CompletedEvent
    | IncompleteResponse
    | FailedResponse
    | StreamError
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | SummaryPartAdded
    | SummaryPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningDelta
    | ReasoningDone
    | SummaryDelta
    | SummaryDone
    | ArgumentsDelta
    | ArgumentsDone
)


class Deleted(JsonShape):
    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(JsonShape):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
