"""LangChain: chat, tools, structured output and agents, by OpenAI's APIs and by Anthropic's."""

import sys
from functools import reduce
from operator import add
from typing import Annotated, Literal

from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]


@tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    return f"sunny in {city}"


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


openai = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
bounds = {"max_tokens": 300, "temperature": 0}
models = {
    "chat": ChatOpenAI(**openai, **bounds, stream_usage=True),
    "responses": ChatOpenAI(**openai, **bounds, use_responses_api=True),
    "messages": ChatAnthropic(
        model=MODEL, base_url=URL, api_key="none", max_retries=0, **bounds
    ),
}  # fmt: skip
question = HumanMessage("What is the weather in Paris?")
who = HumanMessage("Save a person: Ada, 36 years old.")
for api, model in models.items():
    whole = model.invoke([SystemMessage("Be brief."), question])
    assert whole.usage_metadata["output_tokens"] > 0, api
    chunks = list(model.stream([SystemMessage("Be brief."), question]))
    streamed = reduce(add, chunks)
    assert len(chunks) > 1 and streamed.text == whole.text, api
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"], api
    assert [one.text for one in model.batch(["Hi", "Hi"])] == [model.invoke("Hi").text] * 2, api

    bound = model.bind_tools([get_weather], tool_choice="any")
    called = bound.invoke([question])
    (call, *_) = called.tool_calls
    assert call["name"] == "get_weather" and call["args"]["city"] in ("Paris", "Oslo"), api
    (same, *_) = reduce(add, bound.stream([question])).tool_calls
    assert same["name"] == call["name"] and same["args"] == call["args"], api
    results = [
        ToolMessage(get_weather.invoke(each["args"]), tool_call_id=each["id"])
        for each in called.tool_calls
    ]
    model.bind_tools([get_weather]).invoke([question, called, *results])

    is_openai = api != "messages"
    for method in ("json_schema", "function_calling") if is_openai else ("function_calling",):
        structured = model.with_structured_output(Person, method=method)
        assert isinstance(structured.invoke([who]), Person), (api, method)
    for strategy in (ToolStrategy, ProviderStrategy) if is_openai else (ToolStrategy,):
        agent = create_agent(model, tools=[], response_format=strategy(Person))
        answer = agent.invoke({"messages": [who]})["structured_response"]
        assert isinstance(answer, Person), (api, strategy)

old = OpenAI(**openai, max_tokens=10, temperature=0)
assert "".join(old.stream("The code of the")) == old.invoke("The code of the")
