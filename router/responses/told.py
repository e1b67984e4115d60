"""The fields of a response object that repeat what was asked."""

from typing import Any

import msgspec

from router.api.generation import Generation
from router.responses.schemas import ResponseRequest, ResponseTool, ResponseToolChoice


def told_of(fields: ResponseRequest, generation: Generation, ident: str) -> dict[str, Any]:
    """Large ones as bytes, which are copied into every event that has them."""
    sampling = generation.requests[0].sampling
    reasoning = fields.reasoning
    return {
        "id": ident,
        "object": "response",
        "created_at": generation.created,
        "background": False,
        "frequency_penalty": sampling.frequency_penalty,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "metadata": fields.metadata or {},
        "model": generation.model,
        "parallel_tool_calls": fields.parallel_tool_calls,
        "presence_penalty": sampling.presence_penalty,
        "previous_response_id": fields.previous_response_id,
        "prompt_cache_key": fields.prompt_cache_key or None,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "safety_identifier": fields.safety_identifier or None,
        "service_tier": "default",
        "temperature": sampling.temperature,
        "text": _raw({"format": _format(fields), "verbosity": fields.text.verbosity}),
        "tool_choice": _choice(fields),
        "tools": _raw([_tool(tool) for tool in fields.tools]),
        "top_logprobs": fields.top_logprobs,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": fields.user or None,
    }


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _format(fields: ResponseRequest) -> dict[str, Any]:
    given = fields.text_format
    if given.type != "json_schema":
        return {"type": given.type}
    return {
        "type": given.type,
        "name": given.name,
        "schema": given.schema,
        "strict": given.strict,
        "description": given.description,
    }


def _choice(fields: ResponseRequest) -> Any:
    choice = fields.tool_choice
    if not isinstance(choice, ResponseToolChoice):
        return choice
    if choice.type == "function":
        return {"type": choice.type, "name": choice.name}
    tools = [{"type": tool.type, "name": tool.name} for tool in choice.tools]
    return {"type": choice.type, "mode": choice.mode, "tools": tools}


def _tool(tool: ResponseTool) -> dict[str, Any]:
    return {
        "type": tool.type,
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }
