"""LlamaIndex: chat, completions, tools and structured output, whole and streamed."""

import asyncio
import sys
from typing import Annotated, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]


def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    return f"sunny in {city}"


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


def new_model(*, is_chat: bool, by_schema: bool = False) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=f"{URL}/v1",
        api_key="none",
        is_chat_model=is_chat,
        is_function_calling_model=is_chat,
        should_use_structured_outputs=by_schema,
        context_window=2048,
        temperature=0,
        max_tokens=300,
        max_retries=0,
    )


model = new_model(is_chat=True)
question = ChatMessage(role="user", content="What is the weather in Paris?")
answer = model.chat([question])
*_, last = model.stream_chat([question])
assert last.message.content == answer.message.content
assert asyncio.run(model.achat([question])).message.content == answer.message.content
plain = new_model(is_chat=False)
*_, last = plain.stream_complete("The code of the", max_tokens=20)
assert last.text == plain.complete("The code of the", max_tokens=20).text

tools = [FunctionTool.from_defaults(get_weather)]
called = model.chat_with_tools(tools, user_msg=question, tool_required=True)
(call, *_) = calls = model.get_tool_calls_from_response(called)
assert call.tool_name == "get_weather" and call.tool_kwargs["city"] in ("Paris", "Oslo")
*_, streamed = model.stream_chat_with_tools(tools, user_msg=question, tool_required=True)
(same, *_) = model.get_tool_calls_from_response(streamed)
assert same.tool_kwargs == call.tool_kwargs
results = [
    ChatMessage(
        role="tool",
        content=get_weather(**each.tool_kwargs),
        additional_kwargs={"tool_call_id": each.tool_id},
    )
    for each in calls
]
history = [question, called.message, *results]
assert model.chat_with_tools(tools, chat_history=history).raw.usage.completion_tokens > 0

who = ChatMessage(role="user", content="Save a person: Ada, 36 years old.")
assert isinstance(model.as_structured_llm(Person).chat([who]).raw, Person)
# Streams of it leave the choice of tools to the model, but those by a schema do not.
structured = new_model(is_chat=True, by_schema=True).as_structured_llm(Person)
person = structured.chat([who]).raw
assert isinstance(person, Person)
*_, last = structured.stream_chat([who])
assert last.raw.model_dump() == person.model_dump()
