"""A served version as the HTTP surface needs it: text to tokens and back, and what goes by them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from protocol.formats.formats import Formats
from protocol.messages import ServedVersion
from protocol.text.pooling_config import PoolingConfig
from protocol.text.sampling_defaults import SamplingDefaults
from protocol.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelText:
    """Made of a version's text files once, and used by any thread."""

    version: ServedVersion
    tokenizer: Tokenizer
    formats: Formats
    """In which the model calls tools and reasons."""
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    """Of requests that do not say themselves."""
    tokenizer_description: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Of the checkpoint's files, for clients that make prompts themselves."""
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    """How the model makes one vector of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenModel:
    """What one request is answered by."""

    name: str
    """As the client named it: a model, one of its revisions or an alias. Answers carry the model's
    (`text.version.model`)."""
    text: ModelText
    context_tokens: int
    """Prompt and output together, at most, of the workers that are ready now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A name that requests may be for."""

    name: str
    context_tokens: int | None
    """The longest that any of its ready workers takes; None: no worker is ready."""
    revisions: tuple[str, ...] = ()
    """That can be asked for now, sorted; empty of an alias."""
    alias_for: Mapping[str, float] = field(default_factory=dict)
    """Of an alias: what it stands for, and the weight of each. Empty of a model."""


class Models(Protocol):
    """What is served, as the HTTP surface asks for it."""

    def choose(self, name: str | None, key: str) -> ChosenModel:
        """What answers a request for `name`: a model, `MODEL@REVISION`, of which a beginning of six
        characters will do, or an alias. None or "": the only model that is served. Where several
        would do, equal `key`s (a session, else the request) get the same of every router. From any
        thread. Raises `UnknownModel` and `ModelAway`."""

    async def wait_for(self, name: str | None) -> None:
        """After `ModelAway`, on the event loop: until something answers to `name`. Raises
        `ModelAway` when nothing is on the way, or it takes longer than the router is patient."""

    def listed(self) -> tuple[ListedModel, ...]:
        """By name, aliases after the models. From any thread."""

    def not_ready(self) -> str | None:
        """Why nothing can be asked for; None when something can, or could before and is waited for.
        Strangers may read it."""
