"""A request of `/v1/responses` as the chat that all APIs share."""

from collections.abc import Sequence

from protocol.formats.contract import Tool
from router.api.errors import bad_field
from router.openai.conversation import Chat, Conversation
from router.openai.turns import Turn
from router.responses.items import InputItem, turns_of
from router.responses.schemas import ResponseRequest

NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""What this API calls fields of chat completions."""


def conversation_of(
    fields: ResponseRequest, items: Sequence[InputItem], paths: Sequence[str]
) -> Conversation:
    """`items`: the whole input, references looked up. Raises ApiError 400."""
    return Conversation(
        chat=Chat(
            turns=(*_instructions(fields), *turns_of(items, paths)),
            names=NAMES,
            tools=_tools(fields),
            choice=fields.choice(),
            effort=fields.reasoning.effort,
            template_kwargs=fields.chat_template_kwargs,
        ),
        sampling=fields,
        max_tokens=fields.max_output_tokens,
        num_logprobs=fields.num_logprobs,
        parallel=fields.parallel_tool_calls,
    )


def _instructions(fields: ResponseRequest) -> tuple[Turn, ...]:
    """Of this response alone: those of earlier ones are not carried on."""
    if fields.instructions is None:
        return ()
    return (Turn(path="instructions", role="system", content=fields.instructions),)


def _tools(fields: ResponseRequest) -> tuple[Tool, ...]:
    try:
        return fields.shown_tools()
    except ValueError as error:
        raise bad_field("tools", str(error)) from error
