"""openai-agents with its default, which is the Responses API, and with chat."""

import sys
from typing import Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
cities: list[str] = []


@function_tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    cities.append(city)
    return f"sunny in {city}"


class Person(BaseModel):
    name: str
    age: int


for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
    model = kind(MODEL, client)
    settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=300)
    agent = Agent(
        "weather",
        model=model,
        tools=[get_weather],
        model_settings=settings,
        tool_use_behavior="stop_on_first_tool",
    )
    cities.clear()
    answer = Runner.run_sync(agent, "What is the weather in Paris?", max_turns=2)
    assert cities and answer.final_output == f"sunny in {cities[0]}", kind
    settings = ModelSettings(temperature=0, max_tokens=300)
    agent = Agent("person", model=model, output_type=Person, model_settings=settings)
    assert isinstance(Runner.run_sync(agent, "Who?").final_output, Person), kind
