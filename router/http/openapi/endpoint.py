"""What the document says of one path: its request, its answers, an example of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from router.api.parsing import Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    path: str
    """As FastAPI routes it, e.g. `/v1/models/{model}`."""
    summary: str
    method: Literal["get", "post", "delete"] = "post"
    request: type[Schema] | None = None
    answer: Any
    """The type of the JSON; str: text."""
    to_anthropic: Any = None
    """The type of the JSON to clients that speak Anthropic's API, where that differs."""
    event: Any = None
    """The type of each event's JSON of a streamed answer; None: it is never streamed."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """A request, but for `model`, which the document fills in."""
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Parameters behind the path, which may all be absent, and their JSON Schemas."""
    statuses: tuple[int, ...] = ()
    """Of its refusals, besides those of every path."""
    is_open: bool = False
    """Whether no key is needed."""
    error: Any = None
    """The type of its refusals' JSON; None: OpenAI's."""
