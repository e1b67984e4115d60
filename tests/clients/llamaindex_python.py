"""LlamaIndex: chat, tools and structured output."""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]


def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    return f"sunny in {city}"


class Person(BaseModel):
    """Somebody"""

    name: str
    age: int


model = OpenAILike(
    model=MODEL,
    api_base=f"{URL}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=2048,
    max_tokens=300,
    max_retries=0,
)
question = ChatMessage(role="user", content="What is the weather in Paris?")
assert model.chat([question]).message.content is not None
assert list(model.stream_chat([question]))
tools = [FunctionTool.from_defaults(get_weather)]
called = model.chat_with_tools(tools, user_msg=question, tool_required=True)
(call, *_) = model.get_tool_calls_from_response(called)
assert call.tool_name == "get_weather" and call.tool_kwargs["city"] in ("Paris", "Oslo")
answer = model.as_structured_llm(Person).chat([ChatMessage(role="user", content="Who?")])
assert isinstance(answer.raw, Person)
