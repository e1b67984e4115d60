"""The answers about models, tokens and the server, as types."""

from typing import Any, Literal

import msgspec

from router.http.openapi.answer import JsonShape


class OurModel(JsonShape):
    """What OpenAI's API has no place for."""

    alias_for: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    """What an alias stands for, and the weight of each."""
    revisions: list[str] | msgspec.UnsetType = msgspec.UNSET
    """Of a model: those that can be asked for now."""


class ModelShape(JsonShape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    """Null: no worker serves it now."""
    baton: OurModel
    default_sampling_params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """Of a model."""


class ModelList(JsonShape):
    object: Literal["list"]
    data: list[ModelShape]


class Tokens(JsonShape):
    count: int
    max_model_len: int
    tokens: list[int]


class Text(JsonShape):
    prompt: str


class AnthropicModel(JsonShape):
    """To clients that say which version of Anthropic's API they speak."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(JsonShape):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Version(JsonShape):
    version: str


class ServerLoad(JsonShape):
    server_load: int


class HealthShape(JsonShape):
    status: Literal["alive"]


class Readiness(JsonShape):
    ready: bool
    reason: str | msgspec.UnsetType = msgspec.UNSET
    warning: str | msgspec.UnsetType = msgspec.UNSET


class Traces(JsonShape):
    request: str
    traces: list[dict[str, Any]]
