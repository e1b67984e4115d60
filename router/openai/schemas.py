"""The requests of OpenAI's API as far as Baton serves them, and a few common extras.

Sampling values that are None take the checkpoint's defaults. Answers are in
`router.http.openai.json_answer`. Checks what needs no tokeniser.
"""

from collections.abc import Container
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol.formats.contract import Tool, ToolChoice
from router.api.errors import bad_field, unsupported_field
from router.api.parsing import Reader, Schema, Unsupported
from router.openai.messages import Messages, read_messages
from router.openai.prompts import Prompt, TokenId, read_prompts, read_token_ids
from router.openai.structured import StructuredFields
from router.openai.tools import AllowedTools, read_choice, read_tools
from router.openai.turns import check_depth
from router.openai.unsupported import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED, TOKENIZE_UNSUPPORTED

MAX_STOPS = 16
"""OpenAI allows 4. Each costs every token of the request a search."""
MAX_STOP_CHARS = 1024
"""Of one stop string: so much text may be held back while it could be part of it."""
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_SEED = 2**63
MAX_COPIED_TOKENS = 4 << 20
"""Of the prompts of all choices of a request: each is told its prompt, at up to 5 bytes a token."""
MAX_KWARGS_DEPTH = 32
"""Of `chat_template_kwargs`: a template may recurse over them."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Name = Annotated[str, Meta(max_length=1024)]
"""Of somebody or something; asks for nothing."""
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Metadata = dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]]


class StreamOptions(Schema, frozen=True, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Usage in every chunk, if `include_usage`."""
    include_obfuscation: bool | None = None


_stops = msgspec.json.Decoder(Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)])


def _read_stops(raw: bytes) -> tuple[str, ...]:
    stops = _stops.decode(raw)
    return (stops,) if isinstance(stops, str) else tuple(stops)


_biases = msgspec.json.Decoder(Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)])


def _read_biases(raw: bytes) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(_biases.decode(raw).items()))


_kwargs = msgspec.json.Decoder(dict[str, Any])


def _read_kwargs(raw: bytes) -> dict[str, Any]:
    kwargs = _kwargs.decode(raw)
    check_depth(kwargs, MAX_KWARGS_DEPTH)
    return kwargs


_documents = msgspec.json.Decoder(list[dict[str, Any]])


def _read_documents(raw: bytes) -> tuple[dict[str, Any], ...]:
    documents = _documents.decode(raw)
    check_depth(documents, MAX_KWARGS_DEPTH)
    return tuple(documents)


_CHAT_READERS: dict[str, Reader] = {
    "messages": read_messages,
    "tools": read_tools,
    "tool_choice": read_choice,
    "documents": _read_documents,
    "chat_template_kwargs": _read_kwargs,
}


class SamplingFields(StructuredFields, frozen=True, kw_only=True):
    """What chat and completions have in common."""

    readers: ClassVar[dict[str, Reader]] = {"stop": _read_stops, "logit_bias": _read_biases}
    model: str | None = None
    """None, as "": the only one that is served."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Count = 1
    max_tokens: Count | None = None
    seed: Annotated[int, Meta(ge=-MAX_SEED, le=MAX_SEED - 1)] | None = None
    stop: tuple[str, ...] = ()
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=1e-6, le=1)] | None = None
    """Less would be 0 in some device's arithmetic; it already means the likeliest token alone."""
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    """0 and -1: all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    """Scores are divided by it: less, and they would leave the range of a float."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: Annotated[tuple[TokenId, ...], Meta(min_length=1)] | None = None
    """None: all are."""
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_BIASES)] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Where log probabilities name tokens."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] = ""
    """Prefixes are shared only between requests of the same salt."""
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    """The lower, the sooner a worker serves it where not all can be."""
    user: Name = ""
    metadata: Annotated[Metadata, Meta(max_length=16)] | None = None
    safety_identifier: Name = ""
    prompt_cache_key: Name = ""
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    request_id: Name = ""
    """vLLM's, as the next; ours is the header `x-request-id`."""
    session_id: Name = ""
    store: bool = False
    """A hint, as the next: nothing is kept, and one tier serves all."""
    service_tier: Name = ""

    def __post_init__(self) -> None:
        if self.stream_options != StreamOptions() and not self.stream:
            raise bad_field("stream_options", "only allowed when stream is true")
        if self.stream_options.include_obfuscation:
            raise unsupported_field("stream_options.include_obfuscation")

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options.continuous_usage_stats)


def refused_but(taken: Container[str]) -> Unsupported:
    """What an API beside chats refuses of their fields: all but those `taken`, so that one which is
    added for chats is refused there, and not ignored."""
    fields = [one for one in msgspec.structs.fields(SamplingFields) if one.name not in taken]
    known = {name: values for name, values in CHAT_UNSUPPORTED.items() if name not in taken}
    return known | {one.name: _harmless(one.default) for one in fields}


def _harmless(default: object) -> tuple[object, ...]:
    """What asks for as much as leaving it out."""
    return (default,) if isinstance(default, bool | int | float | str) else ()


_LARGE_OF_CHAT = frozenset({"messages", "tools", "documents"})


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    unsupported: ClassVar[Unsupported] = CHAT_UNSUPPORTED
    large: ClassVar[frozenset[str]] = _LARGE_OF_CHAT
    readers: ClassVar[dict[str, Reader]] = {**SamplingFields.readers, **_CHAT_READERS}
    messages: Messages
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | AllowedTools | None = None
    """None: as the model likes, if there are tools."""
    documents: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    reasoning_effort: Effort | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] = 0
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    separate_reasoning: bool = True
    """SGLang's. False: reasoning is content, as the model wrote it."""
    prediction: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """A hint, as the next two: of what the answer will be like, and of how to keep its prompt."""
    prompt_cache_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    verbosity: Literal["low", "medium", "high"] = "medium"

    def __post_init__(self) -> None:
        SamplingFields.__post_init__(self)
        if self.top_logprobs and not self.logprobs:
            raise bad_field("top_logprobs", "only allowed when logprobs is true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise bad_field("max_completion_tokens", "differs from max_tokens, its older name")

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    unsupported: ClassVar[Unsupported] = COMPLETION_UNSUPPORTED
    large: ClassVar[frozenset[str]] = frozenset({"prompt"})
    readers: ClassVar[dict[str, Reader]] = {**SamplingFields.readers, "prompt": read_prompts}
    prompt: tuple[Prompt, ...]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    """0: the prompt alone, with what is asked of it."""
    echo: bool = False
    best_of: Count | None = None
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        SamplingFields.__post_init__(self)
        if self.best_of not in (None, self.n):
            raise unsupported_field("best_of", "other than equal to n is")

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


class TokenizeRequest(Schema, frozen=True, kw_only=True):
    """Of a text, or of a chat as `/v1/chat/completions` would see it."""

    unsupported: ClassVar[Unsupported] = TOKENIZE_UNSUPPORTED
    large: ClassVar[frozenset[str]] = _LARGE_OF_CHAT | {"prompt"}
    readers: ClassVar[dict[str, Reader]] = _CHAT_READERS
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | AllowedTools | None = None
    documents: tuple[dict[str, Any], ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    reasoning_effort: Effort | None = None
    add_special_tokens: bool | None = None
    """None: to a text. The template of a chat writes them itself."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise bad_field("prompt", "give either prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise unsupported_field("add_special_tokens", "together with messages is")


class DetokenizeRequest(Schema, frozen=True, kw_only=True):
    large: ClassVar[frozenset[str]] = frozenset({"tokens"})
    readers: ClassVar[dict[str, Reader]] = {"tokens": read_token_ids}
    model: str | None = None
    tokens: list[int]
