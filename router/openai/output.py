"""How a conversation's output is held to a format and read: what of it the model cannot do.

Everything that is asked of a model which its formats do not know is refused by name.
"""

from collections.abc import Sequence
from dataclasses import replace

from protocol.formats.contract import ToolError
from protocol.formats.formats import Formats, Output
from protocol.messages import Grammar
from router.api.errors import ApiError, bad_field, unsupported_field
from router.models.model_text import ModelText
from router.openai.conversation import Chat, Conversation
from router.openai.template_variables import can_choose_thinking
from router.openai.tools import check_choice

PLAIN = Output(marks=(), new_parser=None, grammar=None)
"""All of it is content, of any text."""


def held_to(grammar: str | None) -> Output:
    """All of it is content, of a text of `grammar`, if there is one."""
    return PLAIN if grammar is None else replace(PLAIN, grammar=Grammar(text=grammar))


def check_wishes(text: ModelText, chat: Chat) -> None:
    """Before anything is rendered. Raises ApiError 400."""
    try:
        check_choice(chat.tools, chat.choice)
    except ValueError as error:
        raise bad_field(chat.named("tool_choice"), str(error)) from error
    if chat.has_tools and text.formats.tools is None:
        param = chat.named("tools")
        message = f"{param}: not supported: how this model calls tools is not known"
        raise ApiError(400, message, param=param, code="unsupported_parameter")
    template, always_thinks = text.tokenizer.chat_template, text.formats.reasoning_format
    refuses = chat.thinking is False or chat.effort == "none"
    if refuses and always_thinks != "none" and template and not can_choose_thinking(template):
        raise unsupported_field(
            chat.named("thinking" if chat.effort is None else "reasoning_effort"),
            "not to think, by a model that always does, is",
        )


def open_output(formats: Formats, conversation: Conversation, token_ids: Sequence[int]) -> Output:
    """Of the prompt `token_ids`. Raises ApiError 400."""
    chat = conversation.chat
    if not conversation.separate_reasoning and formats.reasoning_format != "none":
        if chat.has_tools or conversation.answer_grammar is not None:
            raise unsupported_field(
                chat.named("separate_reasoning"), "false beside tools or a form is"
            )
        return PLAIN
    try:
        return formats.open(
            tools=chat.tools,
            choice=chat.choice,
            parallel=conversation.parallel,
            prompt_ids=token_ids,
            answer_grammar=conversation.answer_grammar,
        )
    except ToolError as error:
        code = None if error.is_wrong else "unsupported_parameter"
        message = f"{error.place}: {error.rule}"
        raise ApiError(400, message, param=error.place, code=code) from error
