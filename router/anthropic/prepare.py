"""A request of `/v1/messages` to a generation, or to its number of tokens.

May take a while: no work for the event loop. Every mistake of the client ends here, as an
`ApiError` naming the field.
"""

from dataclasses import dataclass, fields

import msgspec

from protocol.ids import RequestId
from router.anthropic.schemas import MessagesRequest, Thinking
from router.anthropic.turns import turns_of
from router.api.errors import bad_field
from router.api.generation import Generation
from router.api.model_choice import Choose
from router.api.parsing import parse_body
from router.models.model_text import ModelText
from router.openai.conversation import Chat, Conversation
from router.openai.encode import encode_chat
from router.openai.output import check_wishes
from router.openai.prepare import prepare_conversation
from router.openai.structured import schema_grammar
from router.openai.template_variables import can_choose_thinking
from router.runtime import Runtime

NAMES = {"reasoning_effort": "output_config.effort", "continue_final_message": "messages"}
"""What this API calls fields of chat completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageGeneration(Generation):
    """A generation whose answer is a message."""

    is_cut: bool
    """The context has no room for as many tokens as were asked for."""
    shows_thinking: bool


def prepare_message(
    runtime: Runtime, body: bytes, request: RequestId, choose: Choose
) -> MessageGeneration:
    """Raises ApiError, and what `choose` does. Beyond the room of the context `max_tokens` asks for
    nothing: agents ask for 32,000 whatever the model is."""
    asked = parse_body(MessagesRequest, body)
    if asked.max_tokens is None:
        raise bad_field("max_tokens", "required")
    chosen = choose(asked.model)
    conversation = Conversation(
        chat=chat_of(chosen.text, asked),
        sampling=msgspec.structs.replace(asked, stop=asked.stop_sequences),
        max_tokens=asked.max_tokens,
        clamps_max_tokens=True,
        answer_grammar=_answer_grammar(asked),
        parallel=not asked.tool_choice.disable_parallel_tool_use,
    )
    generation = prepare_conversation(runtime, conversation, request, chosen)
    known = {one.name: getattr(generation, one.name) for one in fields(Generation)}
    return MessageGeneration(
        **known | {"id": f"msg_{request}"},
        is_cut=asked.max_tokens > generation.requests[0].sampling.max_tokens,
        shows_thinking=asked.thinking is None or asked.thinking.display != "omitted",
    )


def count_tokens(choose: Choose, body: bytes) -> dict[str, int]:
    """Of what would be a request of `/v1/messages`."""
    asked = parse_body(MessagesRequest, body)
    chosen = choose(asked.model)
    text, chat = chosen.text, chat_of(chosen.text, asked)
    check_wishes(text, chat)
    num_tokens = len(encode_chat(text.tokenizer, chat, context=chosen.context_tokens))
    return {"input_tokens": num_tokens}


def chat_of(text: ModelText, asked: MessagesRequest) -> Chat:
    """Raises ApiError 400."""
    thinking, choice = asked.thinking, asked.choice
    turns = turns_of(asked.messages, asked.system)
    kwargs = asked.chat_template_kwargs
    if thinking and thinking.budget_tokens is not None:
        kwargs = {"thinking_budget": thinking.budget_tokens, **kwargs}
    return Chat(
        turns=turns,
        names=NAMES,
        tools=asked.tools,
        choice=choice,
        thinking=_wish_to_think(text, thinking),
        effort=asked.output_config.effort,
        template_kwargs=kwargs,
        continue_final=turns[-1].role == "assistant",
    )


def _wish_to_think(text: ModelText, thinking: Thinking | None) -> bool | None:
    """None: as the template does by itself, which is to think where there is no choice."""
    match thinking:
        case Thinking(type="enabled"):
            template = text.tokenizer.chat_template
            always = text.formats.reasoning_format != "none"
            return None if always and template and not can_choose_thinking(template) else True
        case Thinking(type="disabled"):
            return False
        case _:
            return None


def _answer_grammar(asked: MessagesRequest) -> str | None:
    wanted = asked.output_config.format
    if wanted is None:
        return None
    return schema_grammar(wanted.schema, param="output_config.format.schema")
