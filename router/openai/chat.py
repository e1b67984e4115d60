"""A body of chat completions, or of `/tokenize`, as the chat that all APIs share."""

from protocol.formats.contract import Tool, ToolChoice
from router.api.errors import bad_field
from router.openai.conversation import Chat, Conversation
from router.openai.messages import Message
from router.openai.schemas import ChatRequest, TokenizeRequest
from router.openai.structured import answer_grammar
from router.openai.tools import AllowedTools, only_allowed


def conversation_of(fields: ChatRequest) -> Conversation:
    """Raises ApiError 400."""
    return Conversation(
        chat=chat_of(fields),
        sampling=fields,
        max_tokens=fields.output_limit,
        num_logprobs=fields.num_logprobs,
        parallel=fields.parallel_tool_calls,
        answer_grammar=answer_grammar(fields),
        separate_reasoning=fields.separate_reasoning,
        show_reasoning=fields.include_reasoning,
    )


def chat_of(fields: ChatRequest | TokenizeRequest) -> Chat:
    """Raises ApiError 400."""
    messages = fields.messages or []
    tools, choice = _chosen(fields)
    return Chat(
        turns=tuple(one.turn(f"messages[{index}]") for index, one in enumerate(messages)),
        tools=tools,
        choice=choice,
        documents=fields.documents,
        effort=fields.reasoning_effort,
        template_kwargs=fields.chat_template_kwargs,
        add_generation_prompt=fields.add_generation_prompt,
        continue_final=_continues(fields, messages),
    )


def _chosen(fields: ChatRequest | TokenizeRequest) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model is shown, and the choice among them."""
    choice = fields.tool_choice
    if not isinstance(choice, AllowedTools):
        return fields.tools, choice or "auto"
    try:
        return only_allowed(fields.tools, choice), choice.mode
    except ValueError as error:
        raise bad_field("tool_choice.allowed_tools.tools", str(error)) from error


def _continues(fields: ChatRequest | TokenizeRequest, messages: list[Message]) -> bool:
    """By a field of the body, or one of the last message."""
    for index, message in enumerate(messages[:-1]):
        if message.is_begun:
            name = "prefix" if message.prefix else "partial"
            raise bad_field(f"messages[{index}].{name}", "only of the last message")
    return fields.continue_final_message or messages[-1].is_begun
