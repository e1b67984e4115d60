"""What a chat is once its body was read, whatever API the body was of: turns, tools, wishes.

Checked as far as it goes without a tokeniser and a template.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.formats.contract import Tool, ToolChoice
from router.openai.schemas import SamplingFields
from router.openai.turns import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What makes its prompt."""

    turns: tuple[Turn, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    """What this API calls fields of chat completions, where that differs: for errors."""
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = "auto"
    """`none`: tools are not shown to the model either."""
    documents: tuple[Mapping[str, Any], ...] = ()
    thinking: bool | None = None
    """None: as the template does by itself."""
    effort: str | None = None
    """Of thinking, in OpenAI's words; `none`: no thinking."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final: bool = False
    """The last turn is one of the assistant's that the model goes on with."""

    @property
    def has_tools(self) -> bool:
        """Whether the model may call any."""
        return bool(self.tools) and self.choice != "none"

    def named(self, name: str) -> str:
        """The field `name` of chat completions as this API calls it."""
        return self.names.get(name, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat to be continued, and how."""

    chat: Chat
    sampling: SamplingFields
    """But its `max_tokens`, which is the next."""
    max_tokens: int | None = None
    """None: as many as there is room for."""
    num_logprobs: int | None = None
    """As of `protocol.messages.Sampling`."""
    parallel: bool = True
    """Whether the model may call more than one tool in an answer."""
    answer_grammar: str | None = None
    """What content must be a text of, as llguidance reads it."""
    separate_reasoning: bool = True
    """False: reasoning stays in the content, as the model wrote it."""
    show_reasoning: bool = True
