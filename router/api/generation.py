"""One HTTP request, of whatever API, as generations that are ready to be dispatched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocol.formats.contract import OutputParser
from router.api.errors import ApiError, bad_field
from router.models.model_text import ChosenModel
from router.requests.events import GenerationRequest

MAX_ALTERNATIVES = 1 << 20
"""Of an answer that is not streamed, its tokens counted too: 64 to 128 MB of JSON."""
Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownScores:
    """How the tokens of a choice's prompt are shown: how many alternatives of each, None not so."""

    echoed: int | None
    """Before the generated ones, in the choice's `logprobs`."""
    listed: int | None
    """In `prompt_logprobs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownVectors:
    """How pooled prompts are shown."""

    as_base64: bool
    is_normalised: bool
    num_dimensions: int | None
    """The first so many; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One HTTP request: its choices and how to show them. Choices are prompt by prompt."""

    kind: Kind
    id: str
    """Of the answer's object, e.g. `chatcmpl-...`."""
    created: int
    """Unix seconds."""
    chosen: ChosenModel
    """What answers it."""
    stream: bool
    include_usage: bool
    continuous_usage: bool
    """In every chunk, not only in the last."""
    n: int
    requests: tuple[GenerationRequest, ...]
    prompt_tokens: int
    """Each prompt once, however many choices it has."""
    echoes: tuple[str, ...]
    """Text to show before each choice; "" unless asked for."""
    new_parser: Callable[[], OutputParser] | None = None
    """Of a choice's output. None: all of it is content."""
    show_reasoning: bool = True
    return_token_ids: bool = False
    """Show those of prompt and output beside the text."""
    tokens_as_ids: bool = False
    """Name tokens by their number where log probabilities do."""
    scores: ShownScores | None = None
    vectors: ShownVectors | None = None
    max_at_once: int | None = None
    """Choices that are dispatched side by side; None: all."""

    @property
    def model(self) -> str:
        """As answers name it: an alias as what it stands for now."""
        return self.chosen.text.version.model

    @property
    def num_at_once(self) -> int:
        num = len(self.requests)
        return num if self.max_at_once is None else min(num, self.max_at_once)


def answer_too_large(kind: Kind) -> ApiError:
    """400 for what is collected beyond `MAX_ALTERNATIVES`, known before or after."""
    logprobs = "(1 + top_logprobs)" if kind == "chat" else "(1 + logprobs)"
    rule = f"at most {MAX_ALTERNATIVES} without `stream`; set `stream`, or lower one of the three"
    return bad_field("max_tokens", f"choices x max_tokens x {logprobs}: {rule}")
