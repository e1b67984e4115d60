"""pydantic-ai: tools, outputs of a type and histories, by chat, responses and messages."""

import asyncio
import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ToolOrOutput

URL, MODEL = sys.argv[1:3]
SETTINGS = {"max_tokens": 300, "temperature": 0.0}


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


def get_weather(context: RunContext, city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    return f"sunny in {city}"


def get_time(context: RunContext, city: Literal["Paris", "Oslo"]) -> str:
    """The time in a city"""
    return f"noon in {city}"


def never(context: RunContext) -> str:
    """Is not allowed"""
    raise AssertionError("called, and not allowed")


async def check(api: str, model: OpenAIChatModel | OpenAIResponsesModel | AnthropicModel) -> None:
    plain = Agent(model, instructions="Be brief.", model_settings=SETTINGS)
    first = await plain.run("Hi")
    assert first.usage.output_tokens > 0, api
    second = await plain.run("And more?", message_history=first.all_messages())
    assert len(second.all_messages()) == 4, api
    async with plain.run_stream("Hi") as stream:
        assert await stream.get_output() == first.output, api
    outputs = [ToolOutput(Person), *([] if api == "messages" else [NativeOutput(Person)])]
    for output in outputs:
        agent = Agent(model, output_type=output, model_settings=SETTINGS, retries=0)
        answer = await agent.run("Save a person: Ada, 36 years old.")
        assert isinstance(answer.output, Person), (api, output)
        async with agent.run_stream("Save a person: Ada, 36 years old.") as stream:
            assert await stream.get_output() == answer.output, (api, output)
        # The call and what came of it go back.
        later = await agent.run("Again.", message_history=answer.all_messages())
        assert isinstance(later.output, Person), (api, output)
    # Of its tools some are allowed, which OpenAI's APIs are told as `allowed_tools`; what a tool
    # says goes back until there is an answer.
    some = {**SETTINGS, "tool_choice": ToolOrOutput(function_tools=["get_weather", "get_time"])}
    agent = Agent(model, tools=[get_weather, get_time, never], model_settings=some)
    assert isinstance((await agent.run("What is the weather in Paris?")).output, str), api
    # Which of the two it calls is the model's to say.
    agent = Agent(model, output_type=[ToolOutput(Person), get_weather], model_settings=SETTINGS)
    answer = await agent.run("What is the weather in Paris?")
    assert isinstance(answer.output, Person) or answer.output.startswith("sunny"), api


async def main() -> None:
    openai = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    await check("chat", OpenAIChatModel(MODEL, provider=openai))
    await check("responses", OpenAIResponsesModel(MODEL, provider=openai))
    anthropic = AnthropicProvider(base_url=URL, api_key="none")
    await check("messages", AnthropicModel(MODEL, provider=anthropic))


asyncio.run(main())
