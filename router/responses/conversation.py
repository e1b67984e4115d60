"""A request of `/v1/responses` as the chat that all APIs share."""

from collections.abc import Sequence

from protocol.formats.contract import Tool
from protocol.text.structured.grammars import JsonStyle
from router.api.errors import bad_field
from router.openai.conversation import Chat, Conversation
from router.openai.structured import answer_grammar, schema_grammar
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
        answer_grammar=_grammar(fields),
    )


def _instructions(fields: ResponseRequest) -> tuple[Turn, ...]:
    """Of this response alone: those of earlier ones are not carried on."""
    if fields.instructions is None:
        return ()
    return (Turn(path="instructions", role="system", content=fields.instructions),)


def _grammar(fields: ResponseRequest) -> str | None:
    """Of `text.format`, or of what vLLM and others have for the same."""
    at, wanted, other = "text.format", fields.text_format, answer_grammar(fields)
    if wanted.type != "json_schema" and wanted.schema is not None:
        raise bad_field(f"{at}.schema", f"not allowed when type is {wanted.type}")
    if wanted.type == "text":
        return other
    if other is not None:
        raise bad_field(at, "not together with other ways to say so")
    if wanted.type == "json_object":
        return schema_grammar({}, param=at)
    if wanted.schema is None:
        raise bad_field(f"{at}.schema", "required")
    style = JsonStyle(closed=bool(wanted.strict))
    return schema_grammar(wanted.schema, param=f"{at}.schema", style=style)


def _tools(fields: ResponseRequest) -> tuple[Tool, ...]:
    try:
        return fields.shown_tools()
    except ValueError as error:
        raise bad_field("tools", str(error)) from error
