"""The answers about models, tokens and the server, as types."""

from typing import Any, Literal

import msgspec

from router.http.openapi.answer import Answer


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    default_sampling_params: dict[str, Any]


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class Tokens(Answer):
    count: int
    max_model_len: int
    tokens: list[int]


class Text(Answer):
    prompt: str


class AnthropicModel(Answer):
    """To clients that say which version of Anthropic's API they speak."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    max_input_tokens: int
    max_tokens: int


class AnthropicModels(Answer):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str
    last_id: str


class Version(Answer):
    version: str


class ServerLoad(Answer):
    server_load: int


class Health(Answer):
    status: Literal["alive"]


class Readiness(Answer):
    ready: bool
    reason: str | msgspec.UnsetType = msgspec.UNSET
    warning: str | msgspec.UnsetType = msgspec.UNSET


class Traces(Answer):
    request: str
    traces: list[dict[str, Any]]
