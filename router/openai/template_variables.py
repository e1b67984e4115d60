"""What a chat template is given besides the messages: tools, documents, how to think.

What a template does not read would change nothing, so it is refused by name.
"""

from typing import Any

from protocol.text.template.chat_template import ChatTemplate
from router.api.errors import ApiError, bad_field
from router.openai.conversation import Chat
from router.openai.tools import tool_shown

RESERVED = frozenset(
    {"messages", "add_generation_prompt", "max_chars", "tools", "documents", "continue_final"}
)
"""No client sets them by `chat_template_kwargs`."""
SWITCHES = ("enable_thinking", "thinking")
"""Names by which templates ask whether to think."""


def template_variables(template: ChatTemplate, chat: Chat) -> dict[str, Any]:
    """Raises ApiError 400."""
    if clash := RESERVED & chat.template_kwargs.keys():
        raise bad_field(chat.named("chat_template_kwargs"), f"must not set {min(clash)}")
    variables: dict[str, Any] = {"add_generation_prompt": _adds_prompt(chat)}
    if chat.has_tools:
        _check_read(template, chat, "tools", "tools")
        variables["tools"] = [tool_shown(tool) for tool in chat.tools]
    if chat.documents:
        _check_read(template, chat, "documents", "documents")
        variables["documents"] = list(chat.documents)
    return variables | _thinking(template, chat) | dict(chat.template_kwargs)


def _adds_prompt(chat: Chat) -> bool:
    """Not before an answer that has begun."""
    if not chat.continue_final:
        return chat.add_generation_prompt
    last = chat.turns[-1]
    if last.role != "assistant" or last.calls:
        raise bad_field(chat.named("continue_final_message"), "the last message is no answer")
    return False


def _thinking(template: ChatTemplate, chat: Chat) -> dict[str, Any]:
    """Both switches, as templates read one or the other, and the effort."""
    thinking = chat.thinking
    if chat.effort not in (None, "none"):
        _check_read(template, chat, "reasoning_effort", "reasoning_effort", *SWITCHES)
    if chat.effort is not None and thinking is None:
        thinking = chat.effort != "none"
    elif thinking:
        _check_read(template, chat, "thinking", *SWITCHES)
    given: dict[str, Any] = {} if thinking is None else dict.fromkeys(SWITCHES, thinking)
    return given if chat.effort is None else {"reasoning_effort": chat.effort, **given}


def _check_read(template: ChatTemplate, chat: Chat, field: str, *variables: str) -> None:
    if template.variables.isdisjoint(variables):
        param = chat.named(field)
        message = f"{param}: not supported by the chat template of this model"
        raise ApiError(400, message, param=param, code="unsupported_parameter")
