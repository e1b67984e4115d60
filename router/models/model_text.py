"""A served version as the HTTP surface needs it: text to tokens and back, and what goes by them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """As the client named it: a model, one of its revisions or an alias; answers carry it."""
    text: ModelText
    context_tokens: int
    """Prompt and output together, at most, of the workers that are ready now."""
