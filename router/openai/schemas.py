"""The requests of OpenAI's API as far as Baton serves them, and a few common extras.

Defaults are OpenAI's (temperature 1, top_p 1), never the checkpoint's generation_config. Answers
are in `router.http.json_answer`. Checks what needs no tokeniser.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from router.openai.parsing import Schema, Unsupported, drop_nothings, explain, unsupported_field
from router.openai.unsupported import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED, MESSAGE_UNSUPPORTED

MAX_STOPS = 16
"""OpenAI allows 4. Each costs every token of the request a search."""
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_SEED = 2**63


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("should be a string or a list of strings")
    if len(stops) > MAX_STOPS or "" in stops:
        raise ValueError(f"should have at most {MAX_STOPS} strings, none of them empty")
    return tuple(stops)


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"should be an object of at most {MAX_BIASES} token ids and biases")
    biases: dict[int, float] = {}
    for token_id, bias in value.items():
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 10):
            raise ValueError(f"keys should be token ids, not {token_id[:20]!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token_id} should be a number from -100 to 100")
        biases[int(token_id)] = float(bias)
    return tuple(sorted(biases.items()))


class StreamOptions(Schema):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class SamplingFields(Schema):
    """What chat and completions have in common."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    seed: int | None = Field(default=None, ge=-MAX_SEED, lt=MAX_SEED)
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, lt=2**31)
    """0 and -1: all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    logit_bias: Annotated[tuple[tuple[int, float], ...], PlainValidator(_biases)] = ()
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0, lt=2**31)
    stop_token_ids: list[int] = Field(default=[], max_length=MAX_BIASES)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    cache_salt: str = Field(default="", max_length=256)
    """Prefixes are shared only between requests of the same salt."""
    user: str = ""
    metadata: dict[str, str] = Field(default={})
    safety_identifier: str = ""

    @field_validator("stream_options", mode="before")
    @classmethod
    def _nothing_asked(cls, value: object) -> object:
        if isinstance(value, dict):
            return {name: option for name, option in value.items() if option is not None}
        return value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Schema):
    type: Literal["text"]
    text: str


class Message(Schema):
    unsupported: ClassVar[Unsupported] = MESSAGE_UNSUPPORTED
    role: Literal["system", "developer", "user", "assistant"]
    content: str
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join(cls, value: object) -> object:
        """Text parts become one string, a line each, as templates expect a string."""
        return "\n".join(map(_part, value)) if isinstance(value, list) else value

    def as_shown(self, *, knows_developer: bool) -> dict[str, str]:
        """As a template gets it. `developer` is `system` to one that does not know it."""
        role = "system" if self.role == "developer" and not knows_developer else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **named}


def _part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"parts of type {kind[:40]!r} are not supported, only 'text'")
    try:
        return TextPart.model_validate(part).text
    except ValidationError as error:
        raise ValueError(f"bad part: {explain(error.errors(include_url=False)[0])}") from error


def _plain_messages(value: object) -> object:
    if not isinstance(value, list):
        return value
    return [_plain_message(message, index) for index, message in enumerate(value)]


def _plain_message(message: object, index: int) -> object:
    if not isinstance(message, dict):
        return message
    at = f"messages[{index}]."
    if message.get("role") in ("tool", "function"):
        raise unsupported_field(f"{at}role={message['role']}")
    return drop_nothings(message, schema=Message, at=at)


Messages = Annotated[list[Message], BeforeValidator(_plain_messages), Field(min_length=1)]


class ChatRequest(SamplingFields):
    unsupported: ClassVar[Unsupported] = CHAT_UNSUPPORTED
    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_completion_tokens: differs from max_tokens, its older name")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def output_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


Prompt = str | tuple[int, ...]


def _prompts(value: object) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(prompt, str) for prompt in value):
            return tuple(value)
        if _are_ids(value):
            return (tuple(value),)
        if all(prompt and _are_ids(prompt) for prompt in value):
            return tuple(tuple(prompt) for prompt in value)
    raise ValueError(
        "should be a string, a list of strings, a list of token ids"
        " or a list of lists of token ids, and none of the lists empty"
    )


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token_id) is int for token_id in value)


class CompletionRequest(SamplingFields):
    unsupported: ClassVar[Unsupported] = COMPLETION_UNSUPPORTED
    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    best_of: int | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: not supported by this server, other than equal to n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: not supported by this server together with logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens


class TokenizeRequest(Schema):
    """Of a text, or of a chat as `/v1/chat/completions` would see it."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(Schema):
    model: str | None = None
    tokens: list[int]
