"""LangChain: chat, tools and structured output, by OpenAI's API and by Anthropic's."""

import sys
from typing import Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]


@tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    return f"sunny in {city}"


class Person(BaseModel):
    """Somebody"""

    name: str
    age: int


openai = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
models = {
    "chat": ChatOpenAI(**openai, max_tokens=300, temperature=0),
    "responses": ChatOpenAI(**openai, max_tokens=300, temperature=0, use_responses_api=True),
    "messages": ChatAnthropic(
        model=MODEL, base_url=URL, api_key="none", max_retries=0, max_tokens=300
    ),
}
question = HumanMessage("What is the weather in Paris?")
for api, model in models.items():
    assert model.invoke([question]).usage_metadata["output_tokens"] > 0, api
    assert sum(1 for _ in model.stream([question])) > 1, api
    called = model.bind_tools([get_weather], tool_choice="any").invoke([question])
    (call, *_) = called.tool_calls
    assert call["name"] == "get_weather" and call["args"]["city"] in ("Paris", "Oslo"), api
    results = [
        ToolMessage(get_weather.invoke(each["args"]), tool_call_id=each["id"])
        for each in called.tool_calls
    ]
    model.bind_tools([get_weather]).invoke([question, called, *results])
    methods = ("json_schema", "function_calling") if api != "messages" else ("function_calling",)
    for method in methods:
        structured = model.with_structured_output(Person, method=method)
        assert isinstance(structured.invoke("Who?"), Person), (api, method)
